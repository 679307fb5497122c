"""`quantenv validate`: evaluates what a run or a benchmark recorded again and lists every difference."""

import random
from collections.abc import Iterator, Mapping, Sequence

import torch

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.replay import benchmark_differences
from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options
from experiments.options.runs import TrainOptions, ValidateOptions
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.comparison import (
    POST_TRAINING,
    QAT,
    costs_of,
    fine_tuned_row,
    float_row,
    meets_budgets,
    post_training,
    quantized_row,
)
from experiments.runs.episodes import Episode
from experiments.runs.final_table import Row
from experiments.runs.finetuning import run_finetune
from experiments.runs.parts import find_task, make_env
from experiments.runs.progress import ProgressView
from experiments.runs.provenance import check_identity
from experiments.runs.run_folder import RunFolder
from experiments.runs.top_k import TopK, TopKFile
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import fit
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.base import Evaluation, Evaluator
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.store.store import OFF
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.tasks import Task


def main(arguments: Sequence[str]) -> int:
    """Validates the folder of a run or of a benchmark.

    Args:
        arguments: The command line after ``validate``.

    Returns:
        Exit code: 0 if everything agrees, 1 if something differs, 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options, a damaged file, or a run whose task is not the one here.
    """
    options = parse_options(ValidateOptions, "validate", arguments)
    if BenchmarkFolder.is_at(options.folder):
        return _validate_benchmark(options)
    folder = RunFolder.open(options.folder)
    run = folder.options()
    torch.set_num_threads(run.threads)
    episodes = folder.read_episodes()
    if not episodes:
        raise QuantenvError(f"{folder.path} has recorded no episode yet, so there is nothing to validate.")
    task = find_task(run.task, run.scheme, run.source)
    evaluator = make_evaluator(run.evaluator, task, OFF)  # computed anew: the store would answer with what it was told
    check_identity(folder.read_environment(), evaluator.identity)
    _, env = make_env(run, task, evaluator)

    top = TopK(run.top_k, env.budgets)
    for episode in episodes:
        top(episode)
    chosen = _choose(episodes, top, options)
    try:
        with GracefulStop() as stop:
            differences = [
                *_episode_differences(chosen, env, evaluator, stop),
                *_file_differences(folder, top, env),
                *_report_differences(folder, run, env, task, options.qat, stop),
            ]
    except Interrupted as interruption:
        announcements().print("Interrupted.")
        return interruption.exit_code
    return _conclude(
        differences, f"{len(chosen)} of {len(episodes)} recorded evaluations, top {len(top.episodes)}, report"
    )


def _validate_benchmark(options: ValidateOptions) -> int:
    try:
        with GracefulStop() as stop:
            folder = BenchmarkFolder.open(options.folder)
            return _conclude(*benchmark_differences(folder, options.all, options.seed, stop))
    except Interrupted as interruption:
        announcements().print("Interrupted.")
        return interruption.exit_code


def _conclude(differences: Sequence[str], compared: str) -> int:
    """Prints the differences and the verdict; returns the exit code."""
    say = results()
    for difference in differences:
        say.print(difference, markup=False, soft_wrap=True)
    verdict = f"{len(differences)} differences" if differences else "everything agrees"
    say.print(f"{compared}: {verdict}.", soft_wrap=True)
    return 1 if differences else 0


def _choose(episodes: Sequence[Episode], top: TopK, options: ValidateOptions) -> list[Episode]:
    """Returns the episodes to evaluate again: the best ones and a random sample, or all."""
    if options.all:
        return list(episodes)
    sample = random.Random(options.seed).sample(episodes, min(options.sample, len(episodes)))
    numbers = {episode.evaluation for episode in (*top.episodes, *sample)}
    return [episode for episode in episodes if episode.evaluation in numbers]


def _episode_differences(
    episodes: Sequence[Episode], env: QuantizationEnv, evaluator: Evaluator, stop: GracefulStop
) -> Iterator[str]:
    with ProgressView(announcements(), "validate", len(episodes)) as view:
        for done, episode in enumerate(episodes, start=1):
            allocation = episode.allocation(env.layers)
            (now,) = evaluator.evaluate([allocation])
            recorded = Evaluation(episode.correct, episode.samples, episode.loss)
            where = f"evaluation {episode.evaluation}"
            yield from _differ(where, "result", recorded, now)
            costs = costs_of(env, allocation)
            yield from _cost_differences(where, episode.costs, costs)
            yield from _differ(where, "feasible", episode.feasible, meets_budgets(env, costs))
            view.show(done, "")
            stop.check()


def _file_differences(folder: RunFolder, top: TopK, env: QuantizationEnv) -> Iterator[str]:
    """Compares top_k.json and best.json, which an interrupted run may lack, with the recorded episodes."""
    expected = top.to_dict(env.layers, *env.origin)
    if folder.top_k.exists() and folder.read_top_k() != fit(expected, TopKFile, folder.top_k.name):
        yield f"{folder.top_k.name}: not the best {len(top.episodes)} of the recorded episodes"
    if folder.best.exists():
        best = Allocation.load(folder.best)
        yield from _differ(folder.best.name, "bits", best.bits, top.best.bits if top.best else None)


def _report_differences(
    folder: RunFolder,
    run: TrainOptions,
    env: QuantizationEnv,
    task: Task | EvaluationTable,
    qat: bool,
    stop: GracefulStop,
) -> Iterator[str]:
    """Evaluates the final table's rows again; those after fine-tuning only if `qat` is set."""
    if not folder.report.exists():
        return
    report = folder.read_report()
    ptq = post_training(task, run.evaluator)
    for row in report.rows:
        if row.stage == QAT and not qat:
            continue
        now = _row_now(row, env, run, task, ptq, stop)
        where = f"report, {row.title} {row.stage}".rstrip()
        yield from _differ(where, "result", row.evaluation, now.evaluation)
        yield from _cost_differences(where, row.costs, now.costs)
        yield from _differ(where, "in budget", row.within_budget, now.within_budget)
        if row.best_epoch is not None:  # which older reports do not say
            yield from _differ(where, "training", (row.best_epoch, row.diverged), (now.best_epoch, now.diverged))


def _row_now(
    row: Row,
    env: QuantizationEnv,
    run: TrainOptions,
    task: Task | EvaluationTable,
    ptq: PTQEvaluator | TableEvaluator,
    stop: GracefulStop,
) -> Row:
    if row.allocation is None:
        return float_row(env, ptq.float_evaluation("test"))
    allocation = Allocation.from_dict(row.allocation)
    if row.stage == POST_TRAINING:
        (evaluation,) = ptq.evaluate([allocation], "test")
    else:
        assert not isinstance(task, EvaluationTable)  # which has no such row
        return fine_tuned_row(row.name, env, allocation, run_finetune(task, allocation, run.qat, row.name, None, stop))
    return quantized_row(row.name, row.stage, env, allocation, evaluation)


def _cost_differences(where: str, recorded: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    for metric in sorted({*recorded, *now}):
        yield from _differ(where, metric, recorded.get(metric), now.get(metric))


def _differ(where: str, what: str, recorded: object, now: object) -> Iterator[str]:
    if recorded != now:
        yield f"{where}: {what} was recorded as {recorded} and is {now}"
