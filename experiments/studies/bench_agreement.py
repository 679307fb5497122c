"""Benchmark part: how often integer arithmetic and its simulation in float predict the same, at uniform bit-widths."""

from typing import Any

import torch

from experiments.studies.bench_options import BenchOptions
from experiments.studies.bench_tasks import source, trained_resnet20
from experiments.studies.harness import Claim
from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import batch_size
from quantenv.evaluation.preparing import calibrate_task
from quantenv.tasks import Task, get_task

BITS = range(2, 9)
TARGET = 0.99
WEIGHTS, BOTH = "weights, activations at 8", "weights and activations"


def agreement(task: Task) -> dict[str, dict[str, dict[str, float]]]:
    """Compares the two backends on a task's search split.

    Args:
        task: The task.

    Returns:
        By what has the bits, by bits (as text): the share of equal predictions, and the accuracies of both.
    """
    split = task.splits["search"]
    networks = [kind(calibrate_task(task)) for kind in (QuantizedNetwork, IntegerNetwork)]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in (WEIGHTS, BOTH):
        found[name] = {}
        for bits in BITS:
            allocation = Allocation.make(task.layers, bits, 8 if name == WEIGHTS else bits)
            predictions = []
            for network in networks:
                network.select(allocation)
                parts = split.inputs.split(batch_size(network))
                predictions.append(torch.cat([network(part).argmax(1) for part in parts]))
            floats, integers = predictions
            found[name][str(bits)] = {
                "agreement": float((floats == integers).double().mean()),
                "float_accuracy": float((floats == split.labels).double().mean()),
                "integer_accuracy": float((integers == split.labels).double().mean()),
            }
    return found


def measure(options: BenchOptions) -> dict[str, Any]:
    """Compares the backends on digits and on ResNet-20.

    Args:
        options: `images` of ResNet-20 counts.

    Returns:
        For each network where its weights and images come from, how many images there were, and its agreements.
    """
    tasks = {"digits": get_task("digits"), "resnet20": trained_resnet20(options.images)}
    return {
        name: {"source": source(task), "images": len(task.splits["search"]), "agreement": agreement(task)}
        for name, task in tasks.items()
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says on which network the backends agree often enough at every bit-width."""
    rows = []
    for name, network in measured.items():
        least = min(row["agreement"] for by_bits in network["agreement"].values() for row in by_bits.values())
        claim = f"float and integer backend predict the same on {name} at every uniform 2-8 bits ({network['source']})"
        rows.append(Claim(claim, f">= {TARGET:.0%}", f"{least:.2%} at least", least >= TARGET))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table: a column for each bit-width."""
    lines = [
        "Share of equal predictions of the float and the integer backend (accuracy of the integer one).",
        "",
        f"| network | bits of | {' | '.join(map(str, BITS))} |",
        "|---|---|" + "---|" * len(BITS),
    ]
    for name, network in measured.items():
        for what, by_bits in network["agreement"].items():
            cells = [f"{row['agreement']:.2%} ({row['integer_accuracy']:.1%})" for row in by_bits.values()]
            lines.append(f"| {name}, {network['images']:,} images | {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
