"""`quantenv benchmark`: runs what is missing of a suite and writes the leaderboard."""

import importlib.resources
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.identity import job_key, task_hash
from experiments.leaderboard.jobs import Refusal
from experiments.leaderboard.markdown import to_markdown
from experiments.leaderboard.parquet import DamagedFile, require_pyarrow
from experiments.leaderboard.results import load_results
from experiments.leaderboard.scores import curves, leaderboard
from experiments.leaderboard.suite import BenchmarkOptions, Job, jobs
from experiments.leaderboard.workers import run_all
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.folder_lock import kept_folder
from experiments.runs.progress import ProgressView
from experiments.runs.provenance import environment
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text
from quantenv.hardware import load_device

#: What of an environment.json a search's result depends on.
VERSIONS = ("python", "packages")


def main(arguments: Sequence[str]) -> int:
    """Runs a benchmark, or what is missing of it.

    Args:
        arguments: The command line after ``benchmark``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options, or if no agent could search anything.
    """
    options = _options(arguments)
    require_pyarrow()
    load_device(options.device)
    folder = BenchmarkFolder(Path(options.output or f"runs/benchmark/{options.name}"))
    wanted = jobs(options)
    tasks = {task: task_hash(task) for task in options.tasks}  # networks are trained before the workers start
    with kept_folder(folder.path, "quantenv benchmark", "the same command"):
        return _benchmark(options, folder, wanted, tasks)


def _benchmark(
    options: BenchmarkOptions, folder: BenchmarkFolder, wanted: Sequence[Job], tasks: Mapping[str, str]
) -> int:
    """Runs what is missing of a benchmark; see `main`."""
    here = environment("", 1)
    versions = {name: here[name] for name in VERSIONS}
    keys = {job.title: job_key(job, tasks[job.task], versions) for job in wanted}
    say = announcements()
    recorded = {job.title: _recorded(folder, job) for job in wanted}
    missing = [job for job in wanted if recorded[job.title] != keys[job.title]]
    changed = sum(recorded[job.title] is not None for job in missing)
    if changed:
        say.print(
            f"{changed} of the searches in {folder.path} were made by other code, options or versions than these: they "
            "are run again."
        )
    say.print(f"{len(wanted)} searches, {len(wanted) - len(missing)} of them done before, in {folder.path}.")
    folder.write_options(options)
    folder.write_json(folder.environment, {**here, "tasks": tasks})
    try:
        with GracefulStop() as stop:
            refused = _run(folder, options, missing, keys, stop)
    except Interrupted as interruption:
        say.print("Interrupted. The same command continues.")
        return interruption.exit_code
    finished = [job for job in _canonical(wanted) if (job.task, job.budget, job.agent, job.seed) not in refused]
    if not finished:
        raise QuantenvError(f"No agent could search anything: {next(iter(refused.values()))}")
    folder.merge(finished)
    content = summarize(folder, _refusals(refused))
    write_text(folder.leaderboard.with_suffix(".md"), to_markdown(content))
    sys.stdout.write(to_markdown(content))
    return 0


def _recorded(folder: BenchmarkFolder, job: Job) -> str | None:
    """Returns the hash that a search was made under; None if there is none or it is damaged, which is said."""
    try:
        return folder.key_of(job)
    except DamagedFile as error:
        announcements().print(f"{error} That search is run again.", markup=False, soft_wrap=True)
        return None


def summarize(folder: BenchmarkFolder, refused: list[dict[str, str]]) -> dict[str, Any]:
    """Writes `leaderboard.json` and `curves.json` from the evaluations and returns the leaderboard."""
    results = load_results(folder)
    content = leaderboard(results)
    content = {
        "format": content.pop("format"),
        "suite": asdict(results.options),
        "environment": msgspec.to_builtins(folder.read_environment()),
        "refused": refused,
        **content,
    }
    folder.write_json(folder.leaderboard, content)
    folder.write_json(folder.curves, curves(results))
    return content


def _options(arguments: Sequence[str]) -> BenchmarkOptions:
    """Reads the options; with ``--quick`` those of the quick suite stand above the shipped ones."""
    options = parse_options(BenchmarkOptions, "benchmark", arguments)
    if not options.quick:
        return options
    shipped = importlib.resources.files("experiments.configs") / "benchmark_quick.yaml"
    with importlib.resources.as_file(shipped) as path:
        return parse_options(BenchmarkOptions, "benchmark", ["--config", str(path), *arguments])


def _run(
    folder: BenchmarkFolder, options: BenchmarkOptions, missing: Sequence[Job], keys: dict[str, str], stop: GracefulStop
) -> dict[tuple[str, float, str, int], str]:
    """Runs searches and keeps each one as soon as it has ended; returns the refused ones and why."""
    refused = {}
    began = time.perf_counter()
    with ProgressView(announcements(), "searches", len(missing)) as view:
        for done, (job, outcome) in enumerate(run_all(missing, options.workers, options.pool, stop), start=1):
            if isinstance(outcome, Refusal):
                refused[job.task, job.budget, job.agent, job.seed] = outcome.sentence
            else:
                folder.write_part(job, keys[job.title], outcome)
            view.show(done, f"{job.title}  {done / (time.perf_counter() - began):.1f} searches/s")
    return refused


def _canonical(wanted: Sequence[Job]) -> list[Job]:
    """Orders searches for the files: seeds of one agent in one case beside each other; the order is of the suite."""
    position: dict[Any, int] = {}
    for job in wanted:
        position.setdefault((job.task, job.budget, job.agent), len(position))
    return sorted(wanted, key=lambda job: (position[job.task, job.budget, job.agent], job.seed))


def _refusals(refused: dict[tuple[str, float, str, int], str]) -> list[dict[str, str]]:
    """Lists refusals, each sentence once for an agent and a task."""
    unique = {(agent, task, sentence): None for (task, _, agent, _), sentence in refused.items()}
    return [{"agent": agent, "task": task, "sentence": sentence} for agent, task, sentence in sorted(unique)]
