"""Benchmark: how many images sensitivities need to rank layers and allocations, and what measuring them costs.

`make bench-sensitivity-images` runs it with its defaults: KL divergences at weight bits 2 and 4, and ``fisher-output``,
each against the same of the whole search split, and their sums against the true accuracy of random allocations.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments.options.parsing import parse_options
from experiments.studies.bench_tasks import tasks_at_hand
from experiments.studies.harness import write_results
from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.core.files import CACHE_VARIABLE
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.sensitivity import DEFAULT, Sensitivity, Settings, measure
from quantenv.tasks import Task

NAME = "bench_sensitivity_images"
#: Weight bits on offer, beside 8-bit activations.
BITS = (2, 4, 8)
#: The kind that one backward pass gives.
FIRST_ESTIMATE = "fisher-output"
#: Images of a float pass run at once: batches of 512 take twice as long.
BATCH = 64


@dataclass(frozen=True)
class BenchOptions:
    """Measures sensitivities on few and on many images, and what each costs."""

    tasks: list[str] = field(default_factory=lambda: ["digits", "resnet20"])
    """Tasks; those whose data are missing are left out, with a line that says so."""
    schemes: list[str] = field(default_factory=lambda: ["linear", "linear+batch-norm"])
    """Quantization schemes of each task."""
    images: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1000])
    """Samples of the search split to measure on; all of them besides."""
    allocations: int = 200
    """Random allocations, whose true accuracy is that of the whole search split."""
    seed: int = 0
    """Seed of the allocations."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Row:
    """A sensitivity on so many images."""

    task: str
    """Task."""
    scheme: str
    """Its quantization scheme."""
    kind: str
    """Kind of sensitivity."""
    images: int
    """Images that it is measured on."""
    deviations: int
    """Deviations that are measured."""
    of_deviations: float
    """Spearman's rank correlation of the deviations' harms with the default kind's on all images."""
    of_sums: float
    """That of the sums over random allocations."""
    of_accuracy: float
    """That of the sums, negated, with the allocations' true accuracy."""
    seconds: float
    """Processor seconds."""
    float_passes: float
    """The same, in passes of the bare eager float network over the whole search split."""


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    torch.set_num_threads(options.threads)
    tasks, notes = tasks_at_hand(options.tasks)
    rows = [
        row
        for task in tasks
        for scheme in options.schemes
        for row in measured_rows(dataclasses.replace(task, scheme=scheme), options)
    ]
    write_results(NAME, arguments, options, "", {"rows": [asdict(row) for row in rows]}, to_markdown(rows, notes))
    return 0


def measured_rows(task: Task, options: BenchOptions) -> list[Row]:
    """Measures one task, the whole search split first."""
    evaluator, search = PTQEvaluator(task), task.splits["search"]
    layers = len(task.layers)
    bits = np.random.default_rng(options.seed).choice(BITS, (options.allocations, layers))
    pairs = np.stack([bits, np.full_like(bits, MAX_BITS)], axis=-1)
    evaluations = evaluator.evaluate([Allocation.make(task.layers, row.tolist(), MAX_BITS) for row in bits])
    accuracy = np.array([evaluation.accuracy for evaluation in evaluations])
    float_pass = min(float_seconds(task) for _ in range(3))
    offered = np.zeros((2, layers, MAX_BITS), dtype=bool)
    offered[0][:, np.array(BITS) - 1] = True
    counts = [len(search), *(count for count in options.images if count < len(search))]
    cases = [(DEFAULT, count) for count in counts] + [(FIRST_ESTIMATE, min(Settings.gradient_images, len(search)))]
    rows: list[Row] = []
    reference: Sensitivity | None = None
    for kind, images in cases:
        settings = Settings(images=images, gradient_images=images)
        began = time.process_time()
        found = _measured_anew(evaluator, kind, settings, offered)
        seconds = time.process_time() - began
        reference = reference or found
        lower = np.array(BITS[:-1]) - 1
        row = Row(
            task=task.name,
            scheme=task.scheme,
            kind=kind,
            images=images,
            deviations=layers * len(lower),
            of_deviations=correlation(found.weights[:, lower].ravel(), reference.weights[:, lower].ravel()),
            of_sums=correlation(found.total(pairs), reference.total(pairs)),
            of_accuracy=correlation(-found.total(pairs), accuracy),
            seconds=seconds,
            float_passes=seconds / float_pass,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (row.kind != FIRST_ESTIMATE, row.images))


def float_seconds(task: Task) -> float:
    """Returns the processor seconds of one pass of the bare float network over the search split."""
    began = time.process_time()
    with torch.inference_mode():
        for batch in task.splits["search"].inputs.split(BATCH):
            task.network(batch)
    return time.process_time() - began


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation, ties by mean rank."""
    return float(spearmanr(first, second).statistic)


def _measured_anew(evaluator: PTQEvaluator, kind: str, settings: Settings, offered: np.ndarray) -> Sensitivity:
    """Measures with a cache directory of its own, in which nothing is known."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            return measure(evaluator, kind, settings, offered=offered)
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before


def to_markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Writes the table."""
    lines = [
        "# Sensitivities by the images that they are measured on",
        "",
        f"Weight bits {', '.join(map(str, BITS))} beside 8-bit activations. Spearman's rank correlation with {DEFAULT} "
        "on the whole search split: of the harms of all deviations, and of their sums over random allocations; then of "
        "the sums with the true accuracy of those allocations. Processor seconds of measuring, and the same in passes "
        "of the bare eager float network over the whole search split.",
        "",
        "| task | scheme | kind | images | deviations | rank of deviations | rank of sums | sums and accuracy | "
        "seconds | float passes |",
        "|---|---|---|" + "---:|" * 7,
        *(
            f"| {row.task} | {row.scheme} | {row.kind} | {row.images:,} | {row.deviations} | {row.of_deviations:.3f} | "
            f"{row.of_sums:.3f} | {row.of_accuracy:.3f} | {row.seconds:.2f} | {row.float_passes:.1f} |"
            for row in rows
        ),
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
