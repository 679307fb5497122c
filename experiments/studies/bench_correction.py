"""Benchmark: what each optional post-training step is worth, in accuracy and in evaluations; and k-means beside linear.

`python -m experiments.studies.bench_correction` runs it with its defaults: all steps alone and together, on uniform
weight bits and on those that `ilp` finds under the scheme at 0.35 of the size, activations at 8 bits.  The default
scheme was chosen by the search split; the table shows the test split.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import quantenv
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.runs.progress import ProgressView
from experiments.studies.bench_tasks import tasks_at_hand
from experiments.studies.harness import circumstances, read_cases, write_cases
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator, evaluate_float
from quantenv.quantization.schemes import LEARNED, SCHEMES, STEPS
from quantenv.tasks import Split, Task

NAME = "bench_correction"
#: Scheme whose evaluation costs are counted in.
PLAIN = "linear"
#: Weight bits of the uniform allocations, and those on offer to `ilp` with its ratio of the size at 8 bits.
BITS, OFFERED, RATIO = (4, 3, 2), (2, 4, 8), 0.35
#: Times that an evaluation is timed; the least counts.
TIMED = 3


def every_scheme() -> list[str]:
    """Lists the schemes: for each rounding of weights no step, each step alone and several; then the learned ones."""
    shared = tuple(step for step in STEPS if step not in (*LEARNED, "absorption"))  # which leaves these networks alone
    together = [("bias", "batch-norm"), ("equalisation", "bias"), shared]
    chosen = dict.fromkeys([(), *((step,) for step in shared), *together])
    schemes = [(weights, *steps) for weights in SCHEMES for steps in chosen]
    schemes += [("linear", step, *rest) for step in LEARNED for rest in ((), ("bias",), ("bias", "batch-norm"))]
    return ["+".join(scheme) for scheme in schemes]


@dataclass(frozen=True)
class BenchOptions:
    """Measures accuracy and cost of evaluations with and without each post-training step."""

    tasks: list[str] = field(default_factory=lambda: ["digits", "resnet20"])
    """Tasks; those whose data are missing are left out, with a line that says so. What is known of others is kept."""
    images: int = 2000
    """Samples of the search and the test split that accuracy is measured on, at most."""
    schemes: list[str] = field(default_factory=every_scheme)
    """Quantization schemes, in the order of the table."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Result:
    """One allocation under one scheme."""

    task: str
    """Task."""
    scheme: str
    """Quantization scheme."""
    bits: str
    """Weight bits of all layers, or ``ilp``."""
    weight_bits: list[int]
    """Weight bits of each layer."""
    search: float
    """Accuracy on the search split."""
    test: float
    """Accuracy on the test split."""
    samples: int
    """Samples of the test split."""
    seconds: float
    """Processor time of one evaluation on the search split, weights rounded before."""
    preparation: float
    """Processor time until the first evaluation was done, calibration and rounding of weights included."""


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
    cases = read_cases(NAME, options.output)
    tasks, notes = tasks_at_hand(options.tasks)
    for task in tasks:
        few = {split: _first(task.splits[split], options.images) for split in ("search", "test")}
        train = task.splits["calibration"]  # nothing is trained
        task = dataclasses.replace(task, splits={**task.splits, **few, "train": train})
        reference = evaluate_float(task, "test").accuracy
        with ProgressView(announcements(), f"corrections {task.name}", len(options.schemes)) as view:
            for done, scheme in enumerate(options.schemes, start=1):
                rows = [asdict(row) for row in measure(task, scheme)]
                measured = {"float_accuracy": reference, "rows": rows}
                cases[f"{task.name}, {scheme}"] = {**circumstances(NAME, arguments, options), **measured}
                view.show(done, scheme)
    write_cases(NAME, options.output, cases, to_markdown(cases, notes))
    return 0


def _first(split: Split, images: int) -> Split:
    return Split(split.inputs[:images], split.labels[:images])


def measure(task: Task, scheme: str) -> list[Result]:
    """Evaluates the allocations of a scheme on the search and the test split."""
    started = time.process_time()
    task = dataclasses.replace(task, scheme=scheme)
    evaluator = PTQEvaluator(task)
    allocations = {str(bits): Allocation.make(task.layers, bits) for bits in BITS}
    evaluator.evaluate(list(allocations.values())[:1])
    preparation = time.process_time() - started
    found = quantenv.search(task, agent="ilp", budget=RATIO, bits=OFFERED, evaluations=1, store="off").best
    assert found is not None
    allocations["ilp"] = found
    splits = [evaluator.evaluate(list(allocations.values()), split) for split in ("search", "test")]
    results, eights = [], Allocation.make(task.layers, 8)
    for (bits, allocation), search, test in zip(allocations.items(), *splits, strict=True):
        seconds = min(_timed(evaluator, allocation, eights) for _ in range(TIMED))
        accuracies, weights = (search.accuracy, test.accuracy), list(allocation.weight_bits)
        results.append(Result(task.name, scheme, bits, weights, *accuracies, test.samples, seconds, preparation))
    return results


def _timed(evaluator: PTQEvaluator, allocation: Allocation, before: Allocation) -> float:
    """Times an evaluation of an allocation after another one, whose statistics are not the same."""
    evaluator.network.maps([before])
    started = time.process_time()
    evaluator.evaluate([allocation])
    return time.process_time() - started


def to_markdown(cases: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Returns a table: a row for each scheme; for each task a column for each allocation, and one for the cost.

    Args:
        cases: Of each task and scheme: accuracy of the float network, and the fields of each `Result`.
        notes: Lines below the table.
    """
    heads = [*(f"{bits} bits" for bits in BITS), "ilp", "cost"]
    of = {(row["task"], row["scheme"], row["bits"]): row for case in cases.values() for row in case["rows"]}
    samples = {row["task"]: row["samples"] for row in of.values()}
    references = {case["rows"][0]["task"]: case["float_accuracy"] for case in cases.values()}
    lines = [
        "# Post-training steps",
        "",
        f"Accuracy on the test split with weights of so many bits everywhere, or those that `ilp` finds under the "
        f"scheme of {', '.join(map(str, OFFERED[:-1]))} and {OFFERED[-1]} bits at {RATIO} of the size; activations of "
        "8 bits; nothing is trained. Cost: processor time of an evaluation on the search split, in those of "
        f"`{PLAIN}`. equalisation and bias: Nagel et al. 2019, sections 4.1 and 4.2; batch-norm: statistics estimated "
        "again under the allocation; adaround: Nagel et al. 2020; brecq: Li et al. 2021. What these two learn, once "
        "for each layer or block and bit-width, is no part of the cost of an evaluation.",
        "",
        *(
            f"- {task}: float {reference:.1%}, {samples[task]:,} images; an accuracy's standard error is "
            f"at most {0.5 / samples[task] ** 0.5:.1%}."
            for task, reference in references.items()
        ),
        "",
        f"| scheme | {' | '.join(f'{task}, {head}' for task in samples for head in heads)} |",
        "|---|" + "---:|" * (len(samples) * len(heads)),
    ]
    for scheme in dict.fromkeys(scheme for _, scheme, _ in of):
        cells = []
        for task in samples:
            found = [of.get((task, scheme, bits)) for bits in (*map(str, BITS), "ilp")]
            cells += [f"{row['test']:.1%}" if row else "" for row in found]
            costs = [_seconds(of, task, each) for each in (scheme, PLAIN)]
            cells.append(f"{costs[0] / costs[1]:.2f}" if all(costs) else "")
        lines.append(f"| {scheme} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def _seconds(of: Mapping[tuple[str, str, str], Any], task: str, scheme: str) -> float:
    """Returns the median time of an evaluation, 0 if there was none."""
    found = sorted(row["seconds"] for key, row in of.items() if key[:2] == (task, scheme))
    return found[len(found) // 2] if found else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
