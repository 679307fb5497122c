"""Benchmark: what each optional post-training step is worth at 4, 3 and 2 bits, and k-means beside linear weights.

`python -m experiments.bench_correction` runs it with its defaults: equalisation, bias absorption, bias correction and
batch-norm re-estimation, alone and together, and AdaRound and BRECQ with each of the latter two, for uniform bits.

Absorption changes neither network: no channel of digits' four pairs of layers has a mean of 3 deviations, and all of
ResNet-20's are padded in between.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from experiments.bench_tasks import tasks_at_hand
from experiments.benchmark import write_results
from experiments.command_line import parse_options
from experiments.console import announcements
from experiments.progress import ProgressView
from quantenv.allocation import Allocation
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.quantize import SCHEMES, STEPS
from quantenv.quantize.schemes import LEARNED
from quantenv.tasks import Split, Task

NAME = "bench_correction"
BITS = (4, 3, 2)
#: What has the bits: activations stay at 8, or have the weights' bits.
WEIGHTS, BOTH = "weights", "weights and activations"


def every_scheme() -> list[str]:
    """Lists the schemes: for each rounding of weights no step, each step alone, and all that need nothing learned."""
    shared = tuple(step for step in STEPS if step not in LEARNED)
    combinations = ((), *((step,) for step in shared), shared)
    schemes = [(weights, *steps) for weights in SCHEMES for steps in combinations]
    schemes += [("linear", step, *rest) for step in LEARNED for rest in ((), ("bias",), ("batch-norm",))]
    return ["+".join(scheme) for scheme in schemes]


@dataclass(frozen=True)
class BenchOptions:
    """Measures the accuracy of uniform allocations with and without each post-training step."""

    tasks: list[str] = field(default_factory=lambda: ["digits", "resnet20"])
    """Tasks; those whose data are missing are left out, with a line that says so."""
    images: int = 1000
    """Samples of the search split that accuracy is measured on, at most."""
    schemes: list[str] = field(default_factory=every_scheme)
    """Quantization schemes, in the order of the table."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Result:
    """One scheme on one uniform allocation."""

    task: str
    """Task."""
    scheme: str
    """Quantization scheme."""
    bits: int
    """Bits of every layer's weights."""
    what: str
    """`WEIGHTS` or `BOTH`."""
    correct: int
    """Samples classified correctly."""
    samples: int
    """Samples of the search split."""
    loss: float
    """Mean cross-entropy in nats."""
    seconds: float
    """Time of one evaluation; weights are rounded before."""


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
    rows: list[Result] = []
    floats: dict[str, float] = {}
    tasks, notes = tasks_at_hand(options.tasks)
    for task in tasks:
        name = task.name
        search = task.splits["search"]
        part = Split(search.inputs[: options.images], search.labels[: options.images])
        train = task.splits["calibration"]  # nothing is trained
        task = dataclasses.replace(task, splits={**task.splits, "search": part, "train": train})
        with ProgressView(announcements(), f"corrections {name}", len(options.schemes)) as view:
            for done, scheme in enumerate(options.schemes, start=1):
                rows += measure(task, scheme)
                view.show(done, scheme)
        floats[name] = PTQEvaluator(task, "float").reference.accuracy
    measured = {"float_accuracy": floats, "rows": [asdict(row) for row in rows], "notes": notes}
    write_results(NAME, arguments, options, "", measured, to_markdown(rows, floats, notes))
    return 0


def measure(task: Task, scheme: str) -> list[Result]:
    """Evaluates the uniform allocations of a scheme on the search split, in float arithmetic."""
    evaluator = PTQEvaluator(dataclasses.replace(task, scheme=scheme), "float")
    results = []
    for what in (WEIGHTS, BOTH):
        for bits in BITS:
            allocation = Allocation.make(task.layers, bits, 8 if what == WEIGHTS else bits)
            evaluator.network.select(allocation)
            started = time.perf_counter()
            (found,) = evaluator.evaluate([allocation])
            seconds = time.perf_counter() - started
            results.append(Result(task.name, scheme, bits, what, found.correct, found.samples, found.loss, seconds))
    return results


def to_markdown(rows: Sequence[Result], floats: dict[str, float], notes: Sequence[str]) -> str:
    """Returns a table for each task: a row for each scheme, a column for each uniform allocation."""
    heads = [f"{bits}/{8 if what == WEIGHTS else bits}" for what in (WEIGHTS, BOTH) for bits in BITS]
    lines = [
        "# Post-training steps",
        "",
        "Accuracy on the search split of uniform allocations (weight/activation bits), in float arithmetic, without "
        "training. equalisation, absorption and bias: Nagel et al. 2019, sections 4.1 and 4.2; batch-norm: statistics "
        "estimated again under the allocation, on the calibration split; adaround: Nagel et al. 2020; brecq: Li et al. "
        "2021. What these two learn, once for each layer or block, is not counted in the time of an evaluation.",
    ]
    for task, reference in floats.items():
        samples = next(row.samples for row in rows if row.task == task)
        lines += [
            "",
            f"{task}, {samples:,} images, float {reference:.1%}; the standard error of an accuracy is at most "
            f"{0.5 / samples**0.5:.1%}.",
            "",
            f"| scheme | {' | '.join(heads)} | ms for an evaluation |",
            "|---|" + "---:|" * (len(heads) + 1),
        ]
        for scheme in dict.fromkeys(row.scheme for row in rows if row.task == task):
            found = [row for row in rows if (row.task, row.scheme) == (task, scheme)]
            cells = [f"{row.correct / row.samples:.1%}" for row in found]
            milliseconds = 1e3 * sorted(row.seconds for row in found)[len(found) // 2]
            lines.append(f"| {scheme} | {' | '.join(cells)} | {milliseconds:.0f} |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
