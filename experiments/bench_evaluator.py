"""Benchmark: the cost of one post-training evaluation, relative to a bare eager float forward of the same images.

Everything runs in one process, interleaved, so that the machine's moods hit all alike; medians of `repeats` rounds.
ResNet-20's shapes with random weights and images: times do not depend on what a network has learnt.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.benchmark import write_results
from experiments.command_line import parse_options
from quantenv.allocation import Allocation
from quantenv.evaluate.ptq import BACKENDS, PTQEvaluator
from quantenv.quantize.integer import integer_obstacle
from quantenv.tasks import Split, Task, get_task
from quantenv.tasks.resnet20 import ResNet20

NAME = "bench_evaluator"


@dataclass(frozen=True)
class BenchOptions:
    """Times evaluations on ResNet-20 and on digits."""

    images: int = 1000
    """Images of the search split."""
    threads: int = 2
    """Threads of torch."""
    repeats: int = 7
    """Rounds; medians are reported."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    torch.set_num_threads(options.threads)
    backends = [name for name in BACKENDS if name == "float" or integer_obstacle() is None]
    tasks = {"resnet20": _random_resnet20(options.images), "digits": get_task("digits")}
    rows = {name: _measure(task, backends, options.repeats) for name, task in tasks.items()}
    write_results(NAME, arguments, options, "", {"rows": rows}, _to_markdown(options, rows))
    return 0


def _random_resnet20(images: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet20()
    sizes = {"train": 64, "calibration": 64, "search": images, "test": 64}
    splits = {
        name: Split(
            torch.randn(size, 3, 32, 32, generator=generator), torch.randint(0, 10, (size,), generator=generator)
        )
        for name, size in sizes.items()
    }
    return Task("random_resnet20", network, splits)


def _measure(task: Task, backends: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Returns seconds for each allocation (median, least, greatest) and the median ratio to the float forward."""
    rng = np.random.default_rng(0)
    inputs = task.splits["search"].inputs
    evaluators = {name: PTQEvaluator(task, name) for name in backends}

    def draw() -> Allocation:
        return Allocation.make(task.layers, rng.integers(2, 9, len(task.layers)).tolist())

    def forward() -> int:
        with torch.no_grad():
            task.network(inputs)
        return 1

    def alone(evaluator: PTQEvaluator) -> int:
        evaluator.evaluate([draw()])
        return 1

    def together(evaluator: PTQEvaluator) -> int:
        # All choices of the last three layers: a subtree of the depth-first enumeration.
        head = rng.integers(2, 9, len(task.layers) - 3).tolist()
        tails = [[a, b, c] for a in (2, 4, 6, 8) for b in (2, 4, 6, 8) for c in (2, 4, 6, 8)]
        evaluator.evaluate([Allocation.make(task.layers, head + tail) for tail in tails])
        return len(tails)

    subjects: dict[str, Callable[[], int]] = {"bare eager float forward": forward}
    for name, evaluator in evaluators.items():
        subjects[f"{name} backend, one allocation"] = lambda evaluator=evaluator: alone(evaluator)  # type: ignore[misc]
        subjects[f"{name} backend, 64 sharing a prefix"] = lambda evaluator=evaluator: together(evaluator)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeats + 1):
        for name, run in subjects.items():
            started = time.perf_counter()
            count = run()
            if turn:  # the first round warms caches up
                seconds[name].append((time.perf_counter() - started) / count)
    base = seconds["bare eager float forward"]
    return {
        name: {
            "seconds": statistics.median(values),
            "least": min(values),
            "greatest": max(values),
            "ratio": statistics.median(value / reference for value, reference in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }


def _to_markdown(options: BenchOptions, rows: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "# One evaluation against one bare float forward of the same images",
        "",
        f"{options.threads} threads, medians of {options.repeats} interleaved rounds, per allocation.",
        "",
        "| network | what | ms (least to greatest) | ratio |",
        "|---|---|---|---|",
    ]
    for network, subjects in rows.items():
        for name, row in subjects.items():
            ms = [f"{1000 * row[key]:.2f}" for key in ("seconds", "least", "greatest")]
            lines.append(f"| {network} | {name} | {ms[0]} ({ms[1]} to {ms[2]}) | {row['ratio']:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
