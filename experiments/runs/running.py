"""A search in a run's folder: its files are written as it goes, so that it can be interrupted anywhere and resumed."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console

from experiments.options.runs import TrainOptions
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.comparison import FineTune, regret_of
from experiments.runs.episodes import Episode, EpisodeLog, read_episodes
from experiments.runs.final_table import to_markdown
from experiments.runs.finetuning import run_finetune, save_weights
from experiments.runs.found import markdown
from experiments.runs.progress import ProgressView, Rate, summary
from experiments.runs.provenance import changes, check_identity, environment
from experiments.runs.recorder import Listener
from experiments.runs.run_folder import RunFolder
from experiments.runs.searching import SearchResult, Setting, learn, prepared, result_of, table
from experiments.runs.tensorboard import TensorBoard, hyper_parameters
from experiments.runs.top_k import TopK
from experiments.runs.transfer import keep_initial
from quantenv.core.allocation import Allocation
from quantenv.core.files import write_text
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.tasks import Task
from quantenv.training import FinetuneResult


def run(
    options: TrainOptions,
    task: Task | EvaluationTable,
    earlier: RunFolder | None,
    say: Console,
    stop: GracefulStop | None,
    begin: Callable[[Setting], object] = lambda setting: None,
    listeners: Sequence[Listener] = (),
) -> tuple[SearchResult, Interrupted | None]:
    """Searches in a run's folder, fine-tunes and compares.

    Args:
        options: What to run.
        task: The task or table.
        earlier: The run's folder to continue, which no other process writes; None makes a new one.
        say: Where progress is shown.
        stop: Says when to end early, and is entered here; None leaves signals as they are.
        begin: Called with the setting before anything is written.
        listeners: Also called with every episode.

    Returns:
        What was found, with its report, and what interrupted the run, if anything did.
    """
    recorded, sound = read_episodes(earlier.episodes) if earlier else ([], 0)
    with prepared(options, task, recorded, earlier) as setting:
        begin(setting)
        where = environment(setting.identity, options.threads)
        with stop or nullcontext(), _folder(setting, where, recorded, sound, say) as folder:
            log = EpisodeLog(folder.episodes, recorded, sound)
            return _search_and_compare(setting, folder, log, listeners, say, stop or GracefulStop())


@contextmanager
def _folder(
    setting: Setting, where: dict[str, Any], recorded: Sequence[Episode], sound: int, say: Console
) -> Iterator[RunFolder]:
    """Gives the run's folder: a new one, or the earlier one once it was seen that it can be continued here."""
    folder = setting.folder
    if folder is None:
        folder = RunFolder.create(setting.options)
        with folder.written_by("quantenv train"):
            folder.write_json(folder.environment, where)
            keep_initial(setting.options, folder)
            folder.keep_prepared(setting.task)
            say.print(f"Run folder: {folder.path}")
            yield folder
        return
    if not recorded and not folder.environment.exists():  # it ended before it had begun
        folder.write_json(folder.environment, where)
        keep_initial(setting.options, folder)
        folder.keep_prepared(setting.task)
    before = folder.read_environment()
    check_identity(before, where["evaluator_identity"])
    for change in changes(before, where):
        say.print(f"Not as when the run was recorded: {change}.")
    if folder.episodes.exists() and folder.episodes.stat().st_size > sound:
        say.print(f"The last line of {folder.episodes.name} was torn by a crash; it is dropped and evaluated again.")
    say.print(f"Resuming {folder.path}: replaying {len(recorded)} recorded evaluations.")
    yield folder


def _search_and_compare(
    setting: Setting,
    folder: RunFolder,
    log: EpisodeLog,
    listeners: Sequence[Listener],
    say: Console,
    stop: GracefulStop,
) -> tuple[SearchResult, Interrupted | None]:
    options, env = setting.options, setting.env
    episodes: list[Episode] = []
    top = TopK(options.top_k, env.budgets)
    board = TensorBoard(folder.path, env.layers, env.budgets, options.evaluations, top)
    ended: Interrupted | None = None
    try:
        rate = Rate()
        with ProgressView(say, "search", options.evaluations) as view:

            def show(episode: Episode) -> None:
                view.show(episode.evaluation, summary(episode, top, env.budgets, rate.tick()))

            try:
                # Every episode is logged, ranked, drawn and shown before a signal can end the search.
                learn(setting, [log, episodes.append, top, board, show, *listeners, stop.check], board.log)
            finally:
                log.close()
        setting.agent.save(folder.agent)
        result = result_of(setting, episodes, top, folder)
        _save_best(result, folder)
        fine_tune = None
        if isinstance(setting.task, Task) and options.qat.epochs:
            fine_tune = _fine_tuner(setting.task, result, folder, board, say, stop)
        result.report = table(result, fine_tune, complete=True)
    except Interrupted as interruption:
        ended = interruption
        result = result_of(setting, episodes, top, folder)
        _save_best(result, folder)
        result.report = table(result, None, complete=False)
    regret = regret_of(env, top.best.accuracy if top.best else None)
    board.finish(hyper_parameters(options, setting.agent.config), result.report, regret)
    write_text(folder.path / "report.md", to_markdown(result.report) + markdown(result.report))
    folder.write_json(folder.report, result.report.to_dict())  # last of all: with it the run is finished
    if ended is None:
        shutil.rmtree(folder.finetuning, ignore_errors=True)  # there is none if nothing was fine-tuned
    return result, ended


def _fine_tuner(
    task: Task, result: SearchResult, folder: RunFolder, board: TensorBoard, say: Console, stop: GracefulStop
) -> FineTune:
    """Returns what fine-tunes a row's allocation, shows it, and keeps the found one's weights."""
    recipe = result.setting.options.qat

    def fine_tune(name: str, allocation: Allocation) -> FinetuneResult:
        plain = name.replace(" ", "_")
        checkpoint = folder.finetuning / f"{plain}.safetensors"
        tuned = run_finetune(task, allocation, recipe, name, board.fine_tuning(plain), stop, checkpoint, say)
        if name == "found":
            save_weights(tuned, folder.finetuned)
        return tuned

    return fine_tune


def _save_best(result: SearchResult, folder: RunFolder) -> None:
    env = result.setting.env
    folder.write_json(folder.top_k, result.top.to_dict(env.layers, *env.origin))
    if result.best is not None:
        result.best.save(folder.best)
