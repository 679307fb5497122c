"""`quantenv train`: search with an agent, fine-tune the best allocation, compare it with the best uniform one.

Read it from top to bottom: `main` opens a new or an earlier run, `train` is the story, the rest are its chapters.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from agents import Agent, make_agent
from experiments.agent_options import resolved_options
from experiments.command_line import flatten, parse_options
from experiments.comparison import (
    FineTune,
    best_uniform,
    chance_note,
    compare,
    post_training,
    regret_note,
    regret_of,
    verdicts,
)
from experiments.console import announcements, results
from experiments.episodes import Episode, EpisodeLog, read_episodes
from experiments.finetune import run_finetune, save_weights
from experiments.options import TrainOptions
from experiments.presets import parse_train_options
from experiments.progress import ProgressView, Rate, summary
from experiments.provenance import changes, check_identity, environment
from experiments.recorder import EpisodeRecorder
from experiments.replay import RecordedEvaluator
from experiments.report import Report, limits, print_report, to_markdown
from experiments.run_folder import RunFolder
from experiments.search import check_fine_tuning, check_names, find_task, make_env, search_evaluator
from experiments.signals import GracefulStop, Interrupted
from experiments.task_source import with_absolute_paths
from experiments.tensorboard import TensorBoard, hyper_parameters
from experiments.top_k import TopK
from experiments.transfer import check_source, keep_initial, start_from
from quantenv.allocation import Allocation
from quantenv.env.environment import QuantizationEnv
from quantenv.errors import QuantenvError
from quantenv.evaluate.base import Evaluator
from quantenv.evaluate.store import OFF, EvaluationStore, open_store
from quantenv.evaluate.stored import through_store
from quantenv.evaluate.table import EvaluationTable
from quantenv.evaluate.table_evaluator import TableEvaluator
from quantenv.files import write_text
from quantenv.finetune import FinetuneConfig, FinetuneResult
from quantenv.hardware import overhead_bytes
from quantenv.parallel import check_processes
from quantenv.tasks import Task

#: Options that fix no number, so that a run may be resumed with others.
OF_THE_MACHINE = ("store", "workers", "pool", "ray_address")


def main(arguments: Sequence[str]) -> int:
    """Runs or resumes a search.

    Args:
        arguments: The command line after ``train``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options or a damaged run folder.
    """
    options = parse_train_options(arguments)
    if options.resume is None:
        return train(_resolved(options), None)
    folder = RunFolder.open(options.resume)
    _refuse_other_options(options)
    given = {name: getattr(options, name) for name in OF_THE_MACHINE}
    options = dataclasses.replace(folder.options(), **{**given, "store": options.store or folder.options().store})
    if folder.report.exists():
        report = folder.read_report()
        if report.complete:
            announcements().print(f"{folder.path} is finished; this is its table.")
            print_report(report, results())
            return 0
    with folder.written_by("quantenv train --resume"):
        return train(options, folder)


def train(options: TrainOptions, earlier: RunFolder | None) -> int:
    """Searches, fine-tunes and compares.

    Args:
        options: What to run.
        earlier: The run folder to continue, whose options these are; None starts a new one.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.
    """
    say = announcements()
    torch.set_num_threads(options.threads)
    check_names(options)
    check_processes(options.qat.processes, options.qat.compute)
    if earlier is None:
        check_source(options)
    say.print(f"Preparing task {options.task!r} with {options.threads} thread{'s' * (options.threads > 1)}.")
    store = open_store(options.store) or OFF
    task = find_task(options.task, options.scheme, options.source)
    check_fine_tuning(options, task)
    with search_evaluator(options, task, store) as evaluator:
        if isinstance(task, Task) and (note := chance_note(task.splits["search"].labels.tolist(), evaluator.reference)):
            say.print(note)
        return _train(options, task, evaluator, store, earlier)


def _train(
    options: TrainOptions,
    task: Task | EvaluationTable,
    searching: Evaluator,
    store: EvaluationStore | str,
    earlier: RunFolder | None,
) -> int:
    recorded, sound = read_episodes(earlier.episodes) if earlier else ([], 0)
    evaluator = RecordedEvaluator(searching, recorded)
    env, bare = make_env(options, task, evaluator)
    recorder = EpisodeRecorder(env, evaluator.reference.samples)
    agent = make_agent(options.agent, recorder, options.seed, options.agent_options)
    start_from(agent, options, earlier)

    where = environment(evaluator.identity, options.threads)
    with GracefulStop() as stop:
        if earlier is not None:
            if not recorded and not earlier.environment.exists():  # it ended before it had begun
                earlier.write_json(earlier.environment, where)
                keep_initial(options, earlier)
            _announce_resume(earlier, where, recorded, sound)
            return _in_folder(earlier, options, task, agent, recorder, bare, store, recorded, sound, stop)
        folder = RunFolder.create(options)
        with folder.written_by("quantenv train"):
            folder.write_json(folder.environment, where)
            keep_initial(options, folder)
            announcements().print(f"Run folder: {folder.path}")
            return _in_folder(folder, options, task, agent, recorder, bare, store, [], 0, stop)


def _in_folder(
    folder: RunFolder,
    options: TrainOptions,
    task: Task | EvaluationTable,
    agent: Agent,
    recorder: EpisodeRecorder,
    bare: QuantizationEnv,
    store: EvaluationStore | str,
    recorded: Sequence[Episode],
    sound: int,
    stop: GracefulStop,
) -> int:
    code = 0
    top = TopK(options.top_k, bare.budgets)
    board = TensorBoard(folder.path, bare.layers, bare.budgets, options.evaluations, top)
    fine_tune = None
    if isinstance(task, Task) and options.qat.epochs:
        fine_tune = _fine_tuner(folder, task, options.qat, board, stop)
    try:
        log = EpisodeLog(folder.episodes, recorded, sound)
        _search(agent, recorder, options.evaluations, bare, log, top, board, stop)
        agent.save(folder.agent)
        _save_best(folder, top, bare)
        report = _report(options, task, bare, store, top, recorder.evaluations, fine_tune, complete=True)
    except Interrupted as interruption:
        code = interruption.exit_code
        _save_best(folder, top, bare)
        report = _report(options, task, bare, store, top, recorder.evaluations, None, complete=False)
    regret = regret_of(bare, top.best.accuracy if top.best else None)
    board.finish(hyper_parameters(options, agent.config), report, regret)
    write_text(folder.path / "report.md", to_markdown(report))
    folder.write_json(folder.report, report.to_dict())  # last of all: with it the run is finished
    print_report(report, results())
    if code:
        announcements().print(
            f"Interrupted after {recorder.evaluations} of {options.evaluations} evaluations, before fine-tuning was "
            f"done. Continue with: quantenv train --resume {folder.path}"
        )
    elif fine_tune is not None:
        shutil.rmtree(folder.finetuning, ignore_errors=True)  # there is none if nothing was fine-tuned
    return code


def _search(
    agent: Agent,
    recorder: EpisodeRecorder,
    evaluations: int,
    env: QuantizationEnv,
    log: EpisodeLog,
    top: TopK,
    board: TensorBoard,
    stop: GracefulStop,
) -> None:
    """Lets the agent learn; every episode is logged, ranked, drawn and shown before a signal can end the search."""
    rate = Rate()
    with ProgressView(announcements(), "search", evaluations) as view:

        def show(episode: Episode) -> None:
            view.show(episode.evaluation, summary(episode, top, env.budgets, rate.tick()))

        recorder.listeners = [log, top, board, show, stop.check]
        try:
            agent.learn(evaluations, board.log)
        finally:
            log.close()


def _report(
    options: TrainOptions,
    task: Task | EvaluationTable,
    env: QuantizationEnv,
    store: EvaluationStore | str,
    top: TopK,
    evaluations: int,
    fine_tune: FineTune | None,
    complete: bool,
) -> Report:
    """Compares what was found with float and uniform; without `fine_tune` after post-training quantization only."""
    ptq = post_training(task, options.evaluator)
    uniform = best_uniform(env, env.evaluator)
    if uniform is not None:
        uniform = dataclasses.replace(uniform, task=env.origin[0], scheme=env.origin[1])
    found = top.best.allocation(env.layers, *env.origin) if top.best else None
    stored = ptq if isinstance(ptq, TableEvaluator) else through_store(ptq, store, task.name)
    rows = compare(env, stored, ptq.float_evaluation("test"), uniform, found, fine_tune)
    notes = [
        f"Scales and biases take {overhead_bytes(env.layers):,.0f} bytes more in every quantized network.",
        f"uniform is the best of all feasible uniform allocations on the search split, found that of "
        f"{evaluations} evaluations by agent {options.agent!r}, seed {options.seed}.",
    ]
    if isinstance(task, EvaluationTable):
        notes.append(
            f"Post-training rows only: a table has no network to fine-tune. Fine-tune what was found on task "
            f"{task.task!r} with `quantenv finetune --run <run folder>`."
        )
    regret = regret_note(env, top.best.accuracy if top.best else None)
    return Report(
        complete=complete,
        evaluations=evaluations,
        budgets=limits(env.budgets),
        rows=rows,
        verdicts=verdicts(rows),
        notes=tuple(notes) if regret is None else (*notes, regret),
    )


def _fine_tuner(
    folder: RunFolder, task: Task, recipe: FinetuneConfig, board: TensorBoard, stop: GracefulStop
) -> FineTune:
    """Returns what fine-tunes a row's allocation, shows it, and keeps the found one's weights."""

    def fine_tune(name: str, allocation: Allocation) -> FinetuneResult:
        plain = name.replace(" ", "_")
        checkpoint = folder.finetuning / f"{plain}.safetensors"
        result = run_finetune(task, allocation, recipe, name, board.fine_tuning(plain), stop, checkpoint)
        if name == "found":
            save_weights(result, folder.finetuned)
        return result

    return fine_tune


def _save_best(folder: RunFolder, top: TopK, env: QuantizationEnv) -> None:
    folder.write_json(folder.top_k, top.to_dict(env.layers, *env.origin))
    if top.best is not None:
        top.best.allocation(env.layers, *env.origin).save(folder.best)


def _resolved(options: TrainOptions) -> TrainOptions:
    """Fills in the agent's options for the task and whole paths, so that the run's config.yaml holds them."""
    filled = resolved_options(options.agent, options.task, options.agent_options)
    return dataclasses.replace(with_absolute_paths(options), agent_options=filled)


def _refuse_other_options(given: TrainOptions) -> None:
    """Raises QuantenvError if options that a run fixes were given beside ``--resume``."""
    plain = flatten(parse_options(TrainOptions, "train", []))
    free = ("resume", *OF_THE_MACHINE)
    other = [name for name, value in flatten(given).items() if name not in free and value != plain[name]]
    if other:
        raise QuantenvError(
            f"--resume continues a run with its own options, so --{other[0]} cannot be given with it: "
            "leave it out, or start a new run."
        )


def _announce_resume(folder: RunFolder, where: dict[str, Any], recorded: Sequence[Episode], sound: int) -> None:
    """Checks that the run can be continued here and says how.

    Raises:
        QuantenvError: If the evaluator measures something else than when the run was recorded.
    """
    say = announcements()
    before = folder.read_environment()
    check_identity(before, where["evaluator_identity"])
    for change in changes(before, where):
        say.print(f"Not as when the run was recorded: {change}.")
    if folder.episodes.exists() and folder.episodes.stat().st_size > sound:
        say.print(f"The last line of {folder.episodes.name} was torn by a crash; it is dropped and evaluated again.")
    say.print(f"Resuming {folder.path}: replaying {len(recorded)} recorded evaluations.")
