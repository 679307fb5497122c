"""Folders of runs and benchmarks as searches: what each one found, of whatever kind its folder is.

Only JSON, YAML and Parquet are read: nothing that a folder from somebody else could run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.jobs import parse_bits
from experiments.leaderboard.results import NOTHING, load_results
from experiments.leaderboard.schemas import Description
from experiments.leaderboard.suite import BenchmarkOptions
from experiments.options.runs import TrainOptions
from experiments.reports.searches import Benchmark, Bits, Case, Point, Run, Search, Setting, Sources, undominated
from experiments.runs.provenance import Environment
from experiments.runs.run_folder import RunFolder
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import YAML_LIMIT, read_bytes

#: Files of a run that a page links to.
RUN_FILES = (
    *("report.md", "best.json", "top_k.json", "episodes.jsonl", "config.yaml", "environment.json", "report.json"),
    *("agent.safetensors", "finetuned.safetensors"),
)


def read_folders(folders: Sequence[str]) -> Sources:
    """Reads folders of runs and benchmarks.

    Raises:
        QuantenvError: If a folder is neither, is given twice, is damaged, or has nothing to show.
    """
    sources, seen = Sources(), set()
    for folder in folders:
        path = Path(folder).resolve()
        if path in seen:
            raise QuantenvError(f"{folder} is given more than once, so its searches would count more than once.")
        seen.add(path)
        if BenchmarkFolder.is_at(folder):
            _read_benchmark(folder, sources)
        elif (Path(folder) / "config.yaml").is_file():
            _read_run(folder, sources)
        else:
            is_there = "is neither a run's nor a benchmark's folder" if path.is_dir() else "is no folder"
            raise QuantenvError(
                f"{folder} {is_there}: give folders as `quantenv train` and `quantenv benchmark` make them, such as "
                "runs/digits/*/*."
            )
    if not sources.searches:
        raise QuantenvError(f"No evaluation is recorded in {', '.join(folders)}, so there is nothing to report.")
    return sources


def _read_run(folder: str, sources: Sources) -> None:
    run = RunFolder.open(folder)
    options = run.options()
    identity = run.read_environment().evaluator_identity
    episodes = run.read_episodes()
    if not episodes:
        sources.missing.append(f"{folder}: the run has recorded no evaluation yet, so it is left out.")
        return
    pairs = _budget_pairs(options)
    metrics = tuple(metric for metric, _ in pairs)
    case = Case(_setting(options, metrics, identity), tuple(_budget_text(budget) for _, budget in pairs))
    report = run.read_report() if run.report.exists() else None
    if report is None:
        sources.missing.append(f"{folder}: the run has not ended, so it has no final table on the test split.")
    if set(metrics) - set(episodes[0].costs):
        raise QuantenvError(f"{run.episodes} lacks costs of the budgeted metrics {', '.join(metrics)}: restore it.")
    sources.searches.append(
        _search(
            case=case,
            points=_Rows(
                np.array([episode.correct for episode in episodes]),
                np.array([episode.loss for episode in episodes]),
                np.array([episode.feasible for episode in episodes], dtype=bool),
                {metric: np.array([episode.costs[metric] for episode in episodes]) for metric in metrics},
            ),
            bits=lambda index: episodes[index].bits,
            folder=folder,
            benchmark=None,
            agent=_agent_name(options.agent, options.constraint),
            seed=options.seed,
            samples=episodes[0].samples,
            asked=options.evaluations,
            final=() if report is None else report.verdicts,
        )
    )
    sources.runs.append(
        Run(
            folder=folder,
            title=f"{case.title}: {_agent_name(options.agent, options.constraint)}, seed {options.seed}",
            report=report,
            config=read_bytes(run.config, limit=YAML_LIMIT).decode(),
            environment=_described(run.read_environment()),
            files=tuple(path for name in RUN_FILES if (path := run.path / name).is_file()),
        )
    )


def _described(environment: Environment) -> dict[str, str]:
    packages = {name: version for name, version in environment.packages.items() if version is not None}
    return {
        **packages,
        "Python": environment.python,
        "system": environment.system,
        "CPU": environment.cpu,
        "threads": str(environment.threads),
        "git revision": environment.git_revision or "none",
        "identity of the evaluator": environment.evaluator_identity,
    }


def _read_benchmark(folder: str, sources: Sources) -> None:
    """Reads every search of a finished benchmark."""
    files = BenchmarkFolder.open(folder)
    results = load_results(files)
    options, jobs = results.options, files.read_jobs()
    name = options.name
    if name in {benchmark.name for benchmark in sources.benchmarks}:
        name = f"{name} ({folder})"
    table = files.read_evaluations(("bits", "correct", "loss", "cost", "feasible", "samples"))
    texts, samples = table["bits"], table["samples"].to_numpy()
    columns = {column: table[column].to_numpy() for column in ("correct", "loss", "cost", "feasible")}
    cases: dict[tuple[str, float], Case] = {}
    for number, job in enumerate(jobs):
        start = number * options.evaluations
        rows = slice(start, start + options.evaluations)
        case = _case_of(options, job, job.evaluator_identity)
        cases[job.task, job.budget] = case

        def bits(index: int, start: int = start) -> Bits:
            weights, activations = parse_bits(texts[start + index].as_py())
            return tuple(zip(weights, activations, strict=True))

        try:
            search = _search(
                case=case,
                points=_Rows(
                    columns["correct"][rows].astype(np.int64),
                    columns["loss"][rows],
                    columns["feasible"][rows].astype(bool),
                    {options.metric: columns["cost"][rows]},
                ),
                bits=bits,
                folder=folder,
                benchmark=name,
                agent=_agent_name(job.agent, options.constraint),
                seed=job.seed,
                samples=int(samples[start]),
                measured=job.equivalent_evaluations,
                asked=options.evaluations,
            )
        except ValueError as error:
            raise QuantenvError(f"{files.evaluations} is damaged ({error}): run the benchmark again.") from error
        sources.searches.append(search)
    sources.benchmarks.append(Benchmark(folder, name, files.read_leaderboard(), files.read_curves(), cases))


@dataclass(frozen=True)
class _Rows:
    """Evaluations of one search as arrays, (N,) each."""

    correct: np.ndarray
    loss: np.ndarray
    feasible: np.ndarray
    costs: Mapping[str, np.ndarray]


def _search(*, case: Case, points: _Rows, bits: Any, **fields: Any) -> Search:
    """Sums a search up; `bits` returns those of an evaluation by its index."""
    rows = np.flatnonzero(points.feasible)

    def point(index: int) -> Point:
        costs = {metric: float(values[index]) for metric, values in points.costs.items()}
        return Point(bits(int(index)), int(points.correct[index]), float(points.loss[index]), costs)

    curve = np.maximum.accumulate(np.where(points.feasible, points.correct, NOTHING))
    best, fronts = None, {}
    if len(rows):
        best = point(rows[np.lexsort((points.loss[rows], -points.correct[rows]))[0]])
    for metric, values in points.costs.items():
        fronts[metric] = tuple(point(index) for index in rows[undominated(values[rows], points.correct[rows])])
    return Search(case=case, curve=curve, best=best, fronts=fronts, **fields)


def _case_of(options: BenchmarkOptions, job: Description, identity: str) -> Case:
    train = TrainOptions(task=job.task, device=options.device, decisions=options.decisions)
    return Case(_setting(train, (options.metric,), identity), (_budget_text(job.budget),))


def _setting(options: TrainOptions, metrics: tuple[str, ...], identity: str) -> Setting:
    pinned = tuple(sorted(options.pinned.items())) if isinstance(options.pinned, dict) else options.pinned
    return Setting(
        task=options.task,
        metrics=metrics,
        device=options.device,
        decisions=options.decisions,
        bits=None if options.bits is None else tuple(sorted(options.bits)),
        pinned=pinned,
        evaluator=options.evaluator,
        identity=identity,
    )


def _budget_pairs(options: TrainOptions) -> list[tuple[str, float | str]]:
    """Returns metrics and their budgets, whichever way they were given; a run's options are sound."""
    budget = options.budget
    if isinstance(budget, str) and "=" in budget:
        budget = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in budget.split(","))}
    if isinstance(budget, dict):
        return list(budget.items())
    metrics = options.metric.split(",") if isinstance(options.metric, str) else options.metric
    budgets = budget.split(",") if isinstance(budget, str) else budget if isinstance(budget, list) else [budget]
    return list(zip([metric.strip() for metric in metrics], budgets, strict=False))


def _agent_name(agent: str, constraint: str) -> str:
    return agent if constraint == "mask" else f"{agent} ({constraint})"


def _budget_text(budget: float | str) -> str:
    return budget.strip() if isinstance(budget, str) else f"{budget:g}"
