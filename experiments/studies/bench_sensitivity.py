"""Benchmark: how well sums of single-layer sensitivities rank allocations by their true accuracy.

`make bench-sensitivity` runs it with its defaults. Spearman's rank correlation over random allocations, with what each
kind costs to measure.
"""

import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments.cli.sensitivity import measure_shown
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.runs.progress import ProgressView
from experiments.studies.bench_tasks import tasks_at_hand
from experiments.studies.harness import write_results
from quantenv.core.allocation import Allocation
from quantenv.core.files import write_atomically
from quantenv.evaluation import make_evaluator
from quantenv.sensitivity import Settings, kinds
from quantenv.tasks import Split, Task

NAME = "bench_sensitivity"
#: Bits that random allocations draw from, evenly and independently, by what is drawn.
BITS = range(2, 9)
DRAWS = ("weights", "weights+activations")
#: Images of the row that shows what a cheap accuracy is worth.
FEW = 256
MEAN_BITS = "mean bits"
#: Evaluations between two updates of the progress bar.
STRIDE = 20


@dataclass(frozen=True)
class BenchOptions:
    """Correlates every kind of sensitivity, summed over layers, with the accuracy of random allocations."""

    tasks: list[str] = field(default_factory=lambda: ["digits", "resnet20"])
    """Tasks; those whose data are missing are left out, with a line that says so."""
    allocations: int = 200
    """Random allocations of each draw: weight bits 2-8 beside 8-bit activations, and both 2-8."""
    images: int = 1000
    """Samples of the search split that the true accuracy is measured on, at most."""
    measured_images: int = 512
    """Samples of the search split that accuracy, loss, kl and sqnr are measured on, at most."""
    gradient_images: int = 64
    """Samples of the search split that fisher, fisher-output and hessian are measured on, at most."""
    relative_error: float = Settings.relative_error
    """Standard error of a Hessian trace, as a share of its size, that ends its probing."""
    probes: int = Settings.probes
    """Probes at most for one trace."""
    resamples: int = 2000
    """Bootstrap resamples of the allocations, for the 95% intervals."""
    seed: int = 0
    """Seed of allocations, probes and resamples."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file, the table and the plot."""


@dataclass(frozen=True)
class Correlation:
    """How well one proxy ranks one draw of allocations."""

    task: str
    """Task."""
    draw: str
    """One of `DRAWS`."""
    proxy: str
    """Kind of sensitivity, or `MEAN_BITS`."""
    spearman: float
    """Rank correlation of the less harmful, or more bits, with the accuracy."""
    low: float
    """2.5% bootstrap percentile over the allocations."""
    high: float
    """97.5% bootstrap percentile."""
    evaluations: float
    """What measuring the proxy costs, in evaluations of one allocation on the whole search split."""


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
    rows: list[Correlation] = []
    truth: dict[str, list[float]] = {}
    tasks, notes = tasks_at_hand(options.tasks)
    for task in tasks:
        name = task.name
        proxies, remarks = measured_proxies(task, options)
        notes += [f"{name}: {remark}" for remark in remarks]
        for draw in DRAWS:
            bits = random_bits(len(task.layers), draw, options)
            accuracy = true_accuracy(task, bits, options)
            truth[f"{name} {draw}"] = accuracy.tolist()
            rows += correlations(name, draw, {**proxies, MEAN_BITS: None}, bits, accuracy, options)
    measured = {"rows": [asdict(row) for row in rows], "notes": notes, "accuracy": truth}
    write_results(NAME, arguments, options, "", measured, to_markdown(options, rows, notes))
    if rows:
        write_atomically(Path(options.output) / f"{NAME}.png", lambda file: file.write(plot(rows)))
    return 0


def measured_proxies(task: Task, options: BenchOptions) -> tuple[dict[str, Any], list[str]]:
    """Measures every kind, and the accuracy drop on few images."""
    settings = Settings(
        images=min(options.measured_images, len(task.splits["search"])),
        gradient_images=options.gradient_images,
        relative_error=options.relative_error,
        probes=options.probes,
        seed=options.seed,
    )
    proxies = {kind: measure_shown(task, kind, settings) for kind in kinds()}
    few = dataclasses.replace(settings, images=min(FEW, settings.images or FEW))
    proxies[f"accuracy of {FEW} images"] = measure_shown(task, "accuracy", few)
    return proxies, [note for proxy in proxies.values() for note in proxy.notes]


def random_bits(layers: int, draw: str, options: BenchOptions) -> np.ndarray:
    """Draws allocations, int64 (allocations, layers, 2) = [..., (weight bits, activation bits)]."""
    rng = np.random.default_rng([options.seed, DRAWS.index(draw)])
    bits = rng.integers(BITS.start, BITS.stop, (options.allocations, layers, 2))
    if draw == DRAWS[0]:
        bits[:, :, 1] = 8
    return bits


def true_accuracy(task: Task, bits: np.ndarray, options: BenchOptions) -> np.ndarray:
    """Evaluates allocations (N, L, 2) on the first images of the search split, float64 (N,)."""
    search = task.splits["search"]
    first = Split(search.inputs[: options.images], search.labels[: options.images])
    evaluator = make_evaluator("ptq", dataclasses.replace(task, splits={**task.splits, "search": first}))
    allocations = [Allocation.make(task.layers, row[:, 0].tolist(), row[:, 1].tolist()) for row in bits]
    accuracy: list[float] = []
    with ProgressView(announcements(), f"true accuracy {task.name}", len(allocations)) as view:
        for start in range(0, len(allocations), STRIDE):
            accuracy += [e.accuracy for e in evaluator.evaluate(allocations[start : start + STRIDE])]
            view.show(len(accuracy), "")
    return np.array(accuracy)


def correlations(
    task: str, draw: str, proxies: Mapping[str, Any], bits: np.ndarray, accuracy: np.ndarray, options: BenchOptions
) -> list[Correlation]:
    """Correlates each proxy with the accuracy, over the same resamples, the best first."""
    rng = np.random.default_rng(options.seed)
    resamples = rng.integers(0, len(accuracy), (options.resamples, len(accuracy)))
    rows = []
    for name, proxy in proxies.items():
        goodness = bits.mean(axis=(1, 2)) if proxy is None else -proxy.total(bits)
        resampled = [rank_correlation(goodness[chosen], accuracy[chosen]) for chosen in resamples]
        low, high = np.percentile(resampled, [2.5, 97.5])
        cost = 0.0 if proxy is None else proxy.evaluations
        whole = rank_correlation(goodness, accuracy)
        rows.append(Correlation(task, draw, name, whole, float(low), float(high), cost))
    return sorted(rows, key=lambda row: -row.spearman)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation, ties by mean rank."""
    return float(spearmanr(first, second).statistic)


def to_markdown(options: BenchOptions, rows: Sequence[Correlation], notes: Sequence[str]) -> str:
    """Returns the table: a row per proxy, a column per task and draw, the best on average first."""
    cases = list(dict.fromkeys((row.task, row.draw) for row in rows))
    names = sorted({row.proxy for row in rows}, key=lambda name: -mean_correlation(rows, name))
    tasks = list(dict.fromkeys(row.task for row in rows))
    heads = [f"{task}, {draw}" for task, draw in cases] + ["mean"] + [f"evaluations, {task}" for task in tasks]
    lines = [
        "# Sums of single-layer sensitivities against true accuracy",
        "",
        f"Spearman's rank correlation over {options.allocations} random allocations (2-8 bits each, of weights beside "
        "8-bit activations or of both), with the 95% bootstrap interval over allocations. Post-training accuracy on "
        f"up to {options.images:,} images of the search split; accuracy, loss, kl and sqnr measured on up to "
        f"{options.measured_images}, the other kinds on up to {options.gradient_images} of them. Measuring costs as "
        "much as that many evaluations on the whole search split.",
        "",
        f"| proxy | {' | '.join(heads)} |",
        "|---|" + "---:|" * len(heads),
    ]
    for name in names:
        found = {(row.task, row.draw): row for row in rows if row.proxy == name}
        cells = [f"{row.spearman:.3f} ({row.low:.3f} to {row.high:.3f})" for row in map(found.__getitem__, cases)]
        costs = [next(row.evaluations for row in rows if (row.task, row.proxy) == (task, name)) for task in tasks]
        cells += [f"{mean_correlation(rows, name):.3f}", *(f"{cost:,.1f}" for cost in costs)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def mean_correlation(rows: Sequence[Correlation], proxy: str) -> float:
    """Returns a proxy's correlation, averaged over tasks and draws."""
    return float(np.mean([row.spearman for row in rows if row.proxy == proxy]))


def plot(rows: Sequence[Correlation]) -> bytes:
    """Draws correlations with their intervals, a panel for each task and draw, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((row.task, row.draw) for row in rows))
    names = sorted({row.proxy for row in rows}, key=lambda name: mean_correlation(rows, name))
    figure = Figure(figsize=(1.8 + 2.9 * len(cases), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cases), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (task, draw) in zip(panels, cases, strict=True):
        for height, name in enumerate(names):
            [row] = [row for row in rows if (row.task, row.draw, row.proxy) == (task, draw, name)]
            panel.plot([row.low, row.high], [height, height], color="0.6", linewidth=2)
            panel.plot([row.spearman], [height], "o", color="tab:blue")
        panel.set_title(f"{task}\n{draw}", fontsize=10)
        panel.set_xlabel("rank correlation")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    figure.suptitle("Additive proxies against true accuracy (Spearman, 95% intervals)", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
