"""`quantenv validate` on a benchmark's folder: repeats what every row of the leaderboard stands on, to the bit."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.jobs import Record, Refusal, parse_bits
from experiments.leaderboard.markdown import to_markdown
from experiments.leaderboard.parquet import COLUMNS
from experiments.leaderboard.results import load_results
from experiments.leaderboard.schemas import Description
from experiments.leaderboard.scores import curves, leaderboard
from experiments.leaderboard.suite import BenchmarkOptions, Job
from experiments.leaderboard.workers import run_all
from experiments.options.console import announcements
from experiments.options.signals import GracefulStop
from experiments.runs.comparison import costs_of, meets_budgets
from experiments.runs.parts import make_env
from experiments.runs.progress import ProgressView
from experiments.runs.provenance import changes, environment
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import read_bytes
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.store.store import OFF
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.shipped import resolve_task

#: Columns that a repeated search must have exactly.
REPEATED = ("bits", "correct", "loss", "cost", "feasible", "reward", "regret")


def benchmark_differences(
    folder: BenchmarkFolder, everything: bool, seed: int, stop: GracefulStop
) -> tuple[list[str], str]:
    """Validates a benchmark.

    The leaderboard and the curves are computed again from the evaluations; every evaluation on a table task is looked
    up again; and one search of each row, or all of them, is repeated, evaluation by evaluation.

    Args:
        folder: The benchmark.
        everything: Repeat all searches of each row.
        seed: Draws which search of a row is repeated.
        stop: Ends it after a signal.

    Returns:
        The differences, and what was compared.

    Raises:
        QuantenvError: If a file is missing or damaged.
        Interrupted: After a signal.
    """
    options = folder.options()
    for change in changes(folder.read_environment(), environment("", 1)):
        announcements().print(f"Note: {change}.", markup=False)
    descriptions = folder.read_jobs()
    differences = list(_leaderboard_differences(folder))
    evaluations = folder.read_evaluations(COLUMNS)
    differences += _lookup_differences(options, evaluations, stop)
    chosen = _choose(descriptions, everything, seed)
    differences += _replay_differences(options, descriptions, evaluations, chosen, stop)
    rows = len({(job.task, job.budget, job.agent) for job in descriptions})
    return differences, f"{rows} rows, {evaluations.num_rows:,} evaluations, {len(chosen)} searches repeated"


def _leaderboard_differences(folder: BenchmarkFolder) -> Iterator[str]:
    recorded = folder.read_leaderboard()
    results = load_results(folder)
    now = leaderboard(results)
    for section in now:
        if section not in recorded:
            yield f"{folder.leaderboard.name}: {section} is missing"
        elif _are_lists_of_one_length(now[section], recorded[section]):
            for before, after in zip(recorded[section], now[section], strict=True):
                if before != after:
                    name = " ".join(str(after[key]) for key in ("task", "budget", "agent") if key in after)
                    yield f"{folder.leaderboard.name}, {section}, {name}: {_where(before, after)}"
        elif recorded[section] != now[section]:
            yield f"{folder.leaderboard.name}: {section} does not follow from the evaluations"
    markdown = folder.leaderboard.with_suffix(".md")
    if not differs_from(recorded, now) and markdown.is_file():
        try:
            drawn = to_markdown(recorded).encode()
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # in sections that do not follow from these
            raise QuantenvError(f"{folder.leaderboard} is incomplete or malformed ({error!r}): restore it.") from error
        if read_bytes(markdown) != drawn:
            yield f"{markdown.name}: not the leaderboard of {folder.leaderboard.name}"
    if folder.read_curves() != curves(results):
        yield f"{folder.curves.name}: the curves do not follow from the evaluations"


def _are_lists_of_one_length(now: Any, recorded: Any) -> bool:
    return isinstance(now, list) and isinstance(recorded, list) and len(now) == len(recorded)


def differs_from(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a recorded leaderboard differs from what follows from the evaluations."""
    return any(recorded.get(section) != now[section] for section in now)


def _where(before: Any, after: Any) -> str:
    """Names the entries of a row that differ, with their values."""
    if not isinstance(before, dict):
        return f"was recorded as {before} and is {after}"
    return "; ".join(
        f"{key} was recorded as {before.get(key)} and is {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )


def _lookup_differences(options: BenchmarkOptions, evaluations: Any, stop: GracefulStop) -> Iterator[str]:
    """Looks every evaluation on a table up again; each allocation once."""
    tasks, budgets = evaluations["task"].to_numpy(), evaluations["budget"].to_numpy()
    for name in options.tasks:
        task = resolve_task(name)
        if not isinstance(task, EvaluationTable):
            continue
        for budget in options.budgets:
            stop.check()
            rows = np.flatnonzero((tasks == name) & (budgets == budget))
            if not len(rows):
                continue
            job = Job(name, options.metric, budget, "random", 0, 1, options.device, options.decisions)
            evaluator = make_evaluator("ptq", task)
            _, env = make_env(job.train_options, task, evaluator)
            of_case = evaluations.take(rows)
            bits, which = np.unique(of_case["bits"].to_numpy().astype(str), return_inverse=True)
            allocations = [Allocation.make(env.layers, *parse_bits(text)) for text in bits]
            found = evaluator.evaluate(allocations)
            costs = [costs_of(env, allocation) for allocation in allocations]
            expected = {
                "correct": np.array([evaluation.correct for evaluation in found]),
                "samples": np.array([evaluation.samples for evaluation in found]),
                "loss": np.array([evaluation.loss for evaluation in found]),
                "cost": np.array([cost[options.metric] for cost in costs]),
                "feasible": np.array([meets_budgets(env, cost) for cost in costs]),
            }
            for column, values in expected.items():
                recorded = of_case[column].to_numpy()
                for row in np.flatnonzero(recorded != values[which]).tolist():
                    where = _name(of_case, row)
                    yield f"{where}: {column} was recorded as {recorded[row]} and is {values[which][row]}"


def _choose(descriptions: Sequence[Description], everything: bool, seed: int) -> list[int]:
    """Returns the indices of the searches to repeat: one of each row, or all."""
    if everything:
        return list(range(len(descriptions)))
    rows: dict[tuple[str, float, str], list[int]] = {}
    for index, job in enumerate(descriptions):
        rows.setdefault((job.task, job.budget, job.agent), []).append(index)
    generator = random.Random(seed)
    return [generator.choice(indices) for indices in rows.values()]


def _replay_differences(
    options: BenchmarkOptions,
    descriptions: Sequence[Description],
    evaluations: Any,
    chosen: Sequence[int],
    stop: GracefulStop,
) -> Iterator[str]:
    """Runs searches again and compares them with their rows of the Parquet file."""
    names = Job.__dataclass_fields__
    repeated = {Job(**{name: getattr(descriptions[index], name) for name in names}).title: index for index in chosen}
    jobs = [Job(**{name: getattr(descriptions[index], name) for name in names}) for index in chosen]
    with ProgressView(announcements(), "searches", len(jobs)) as view:
        for done, (job, outcome) in enumerate(run_all(jobs, options.workers, options.pool, stop, OFF), start=1):
            view.show(done, job.title)
            if isinstance(outcome, Refusal):
                yield f"{job.title}: cannot be repeated: {outcome.sentence}"
                continue
            index = repeated[job.title]
            recorded = evaluations.slice(index * options.evaluations, options.evaluations)
            yield from _record_differences(job, recorded, outcome, descriptions[index])


def _record_differences(job: Job, recorded: Any, now: Record, description: Description) -> Iterator[str]:
    if dict(now.config) != description.config:
        yield f"{job.title}: the agent's options were recorded as {description.config} and are {dict(now.config)}"
    if now.evaluator_identity != description.evaluator_identity:
        yield f"{job.title}: what evaluates is not what was recorded: weights, splits, scheme or settings differ"
    first: dict[str, int] = {}
    for column in REPEATED:
        before, after = recorded[column].to_numpy(), np.asarray(getattr(now, column))
        equal = before == after
        if after.dtype.kind == "f":
            equal |= np.isnan(before) & np.isnan(after)
        if not equal.all():
            first[column] = int(np.argmin(equal))
    if first:
        column = min(first, key=lambda name: first[name])
        row, total = first[column], job.evaluations
        before, after = recorded[column].to_numpy()[row], getattr(now, column)[row]
        yield (
            f"{job.title}: repeats differently from evaluation {row + 1} of {total} on: {column} was recorded as "
            f"{before} and is {after}"
        )


def _name(table: Any, row: int) -> str:
    task, budget, agent, seed, evaluation = (
        table[column][row].as_py() for column in ("task", "budget", "agent", "seed", "evaluation")
    )
    return f"{task} {budget:g} {agent} seed {seed}, evaluation {evaluation}"
