"""Benchmark: what worker processes and Ray actors gain over one process, with one thread and with all cores.

Everything is evaluated in turn from one process, on the same allocations, so that the machine's moods hit all alike;
medians of `repeats` rounds, each of which begins with another way. Workers are started anew in every round, because
some starts are faster than others for as long as they live, and evaluate a batch before the one that is timed. Before
that one there is a rest: threads of the one before wait for more work, on a core, for a while. The store is off, and
every round has allocations of its own.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.benchmark import write_results
from experiments.command_line import parse_options
from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate import make_pool
from quantenv.evaluate.base import Evaluator
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.evaluate.store import OFF
from quantenv.evaluate.workers import POOLS, check_pool
from quantenv.tasks import Task, get_task
from quantenv.tasks.resnet20 import DATA_VARIABLE

NAME = "bench_workers"
#: Allocations in a batch by task: some seconds of one thread's time.
BATCHES = {"digits": 8192, "resnet20": 16}
#: Seconds before each measurement: more than OpenMP's threads spin.
REST = 0.5
ONE_THREAD, ALL_CORES = "one process, one thread", "one process, all cores"


@dataclass(frozen=True)
class BenchOptions:
    """Times batches of different allocations with one process, worker processes and Ray actors."""

    tasks: list[str] | None = None
    """Tasks; by default digits, and resnet20 where its data are ($QUANTENV_DATA)."""
    workers: int = os.cpu_count() or 1
    """Workers, one thread each."""
    pools: list[str] = field(default_factory=lambda: list(POOLS))
    """Kinds of workers."""
    batch: int | None = None
    """Allocations in a batch; by default as many as keep one thread busy for some seconds."""
    repeats: int = 7
    """Rounds; medians are reported."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name in ("workers", "repeats"):
            if getattr(self, name) < 1:
                raise QuantenvError(f"--{name} is {getattr(self, name)}; expected a whole number of at least 1.")
        for pool in self.pools:
            check_pool(pool, None)


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    measured = measure(options)
    write_results(NAME, arguments, options, "", measured, to_markdown(measured))
    return 0


def measure(options: BenchOptions) -> dict[str, Any]:
    """Times the batches.

    Args:
        options: What to time.

    Returns:
        ``workers``, ``cores``, ``repeats``, and ``tasks``: by task the ``batch`` (allocations), ``backend`` and
        ``rows``. A row has ``seconds`` of a batch (median, ``least`` and ``greatest``) and its median speed-up
        ``over_one_thread`` and ``over_all_cores``, with the quartiles of each as ``..._quartiles``; ``workers`` and
        the threads of each.

    Raises:
        QuantenvError: If workers gave another result than this process.
    """
    names = options.tasks or ["digits", *(["resnet20"] if os.environ.get(DATA_VARIABLE) else [])]
    cores = os.cpu_count() or 1
    before = torch.get_num_threads()
    try:
        tasks = {
            name: _measure_task(get_task(name), options.batch or BATCHES.get(name, 64), cores, options)
            for name in names
        }
    finally:
        torch.set_num_threads(before)
    return {"workers": options.workers, "cores": cores, "repeats": options.repeats, "tasks": tasks}


def _measure_task(task: Task, batch: int, cores: int, options: BenchOptions) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    evaluator = PTQEvaluator(task)

    def draw() -> list[Allocation]:
        bits = rng.integers(2, 9, (batch, len(task.layers)))
        return [Allocation.make(task.layers, row.tolist()) for row in bits]

    def alone(threads: int) -> AbstractContextManager[Evaluator]:
        torch.set_num_threads(threads)
        return nullcontext(evaluator)

    subjects: dict[str, Callable[[], AbstractContextManager[Evaluator]]] = {
        ONE_THREAD: partial(alone, 1),
        ALL_CORES: partial(alone, cores),
    }
    threads = {ONE_THREAD: 1, ALL_CORES: cores}
    for pool in options.pools:
        name = _title(pool, options.workers)
        subjects[name], threads[name] = partial(make_pool, "ptq", task, OFF, options.workers, 1, pool), 1
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repeats):
        before, allocations, results = draw(), draw(), []
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with subjects[name]() as subject:
                subject.evaluate(before)  # quantizes the weights and warms caches up
                time.sleep(REST)
                started = time.perf_counter()
                results.append(subject.evaluate(allocations))
                seconds[name].append(time.perf_counter() - started)
        if any(result != results[0] for result in results):
            raise QuantenvError(f"Task {task.name!r}: the ways to evaluate differ in a result, to the bit.")
    return {
        "batch": batch,
        "backend": evaluator.backend,
        "rows": {
            name: {
                "workers": 1 if name in (ONE_THREAD, ALL_CORES) else options.workers,
                "threads": threads[name],
                "seconds": statistics.median(values),
                "least": min(values),
                "greatest": max(values),
                **_speed_up("over_one_thread", seconds[ONE_THREAD], values),
                **_speed_up("over_all_cores", seconds[ALL_CORES], values),
            }
            for name, values in seconds.items()
        },
    }


def _title(pool: str, workers: int) -> str:
    kind = {"processes": "process", "ray": "Ray actor"}[pool]
    return f"{workers} {kind}{'' if workers == 1 else 'es' if pool == 'processes' else 's'}, one thread each"


def _speed_up(name: str, base: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """Returns the median and the quartiles of the rounds' ratios."""
    ratios = [reference / value for reference, value in zip(base, values, strict=True)]
    return {name: statistics.median(ratios), f"{name}_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist()}


def to_markdown(measured: Mapping[str, Any]) -> str:
    """Writes what `measure` returned as a table."""
    lines = [
        "# Workers against one process",
        "",
        f"{measured['cores']} cores, medians of {measured['repeats']} rounds, in each of which all took turns and "
        "workers were started anew; a batch of different random allocations, the store off. All ways gave the same "
        "results, to the bit.",
        "",
        "| task | what | s a batch (least to greatest) | over one thread (quartiles) | over all cores (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for task, content in measured["tasks"].items():
        for name, row in content["rows"].items():
            ratios = [
                f"{row[over]:.2f} ({row[f'{over}_quartiles'][0]:.2f} to {row[f'{over}_quartiles'][1]:.2f})"
                for over in ("over_one_thread", "over_all_cores")
            ]
            lines.append(
                f"| {task}, {content['batch']} allocations, {content['backend']} | {name} | "
                f"{row['seconds']:.2f} ({row['least']:.2f} to {row['greatest']:.2f}) | {ratios[0]} | {ratios[1]} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
