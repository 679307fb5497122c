"""Benchmark part: what it saves that allocations with a common prefix share its activations.

Rows of an enumeration are walked depth first, and one by one; batches of random allocations, as vectorised searches
ask for, are evaluated together, and one by one. The same evaluators, in one process, interleaved.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice, product
from typing import Any

import numpy as np
import torch

from experiments.studies.bench_options import BenchOptions
from experiments.studies.bench_tasks import source, timed_resnet20
from experiments.studies.harness import Claim, interleave, ratio, show, spread
from quantenv.backends.prefix import PrefixRunner
from quantenv.core.allocation import Allocation
from quantenv.core.layers import LayerSpec
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.tasks import get_task

BITS = (2, 4, 6, 8)
#: Random allocations evaluated in one batch.
BATCHES = (8, 32)
#: Rows of ResNet-20's enumeration, and images: a row costs a hundred times as much as on digits.
RESNET_ROWS, RESNET_IMAGES = 32, 256


def measure(options: BenchOptions) -> dict[str, Any]:
    """Times shared and separate evaluations.

    Args:
        options: `rows`, `images`, `rounds` and `seed` count.

    Returns:
        By network: backend, images, most bytes that activations kept for sharing take, and by kind of batch the
        spreads of rows per second together and one by one, and of how many times as fast together is.
    """
    tasks = {
        "digits": (get_task("digits"), options.rows),
        "resnet20": (timed_resnet20(min(options.images, RESNET_IMAGES)), min(options.rows, RESNET_ROWS)),
    }
    networks = {}
    for name, (task, rows) in tasks.items():
        evaluator = PTQEvaluator(task)
        rng = np.random.default_rng(options.seed)
        batches = {f"{rows} rows of the enumeration": partial(_slice, task.layers, rows)}
        for size in BATCHES:
            batches[f"{size} random allocations"] = partial(_draw, task.layers, size, rng)
        networks[name] = {
            "source": source(task),
            "backend": evaluator.backend,
            "images": len(task.splits["search"]),
            "kept_bytes": max(_kept_bytes(evaluator, make()) for make in batches.values()),
            "batches": {what: _compare(evaluator, make, options.rounds) for what, make in batches.items()},
        }
    return {"rounds": options.rounds, "networks": networks}


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says whether sharing pays."""
    rows = []
    for name, network in measured["networks"].items():
        for what, row in network["batches"].items():
            target, met = "", None
            if "enumeration" in what:
                target, met = "> 1", row["times_as_fast"]["least"] > 1
            claim = f"{name}, {what}: sharing prefixes, times as fast as one by one ({network['backend']} backend)"
            rows.append(Claim(claim, target, show(row["times_as_fast"], ".1f"), met))
        claim = f"{name}: activations kept for sharing, MiB at most: a batch of images at a time bounds them"
        rows.append(Claim(claim, "", f"{network['kept_bytes'] / 2**20:.1f}"))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table."""
    lines = [
        f"Medians (least to greatest) of {measured['rounds']} interleaved rounds.",
        "",
        "| network | batch | rows/s together | rows/s one by one | times as fast |",
        "|---|---|---|---|---|",
    ]
    for name, network in measured["networks"].items():
        for what, row in network["batches"].items():
            cells = [show(row[key], ",.1f") for key in ("together_per_second", "alone_per_second", "times_as_fast")]
            lines.append(f"| {name}, {network['backend']} backend | {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _compare(evaluator: PTQEvaluator, make: Callable[[], list[Allocation]], rounds: int) -> dict[str, Any]:
    batches: list[list[Allocation]] = []

    def together() -> int:
        batches.append(make())
        evaluator.evaluate(batches[-1])
        return len(batches[-1])

    def alone() -> int:
        for allocation in batches[-1]:
            evaluator.evaluate([allocation])
        return len(batches[-1])

    seconds = interleave({"together": together, "alone": alone}, rounds)
    return {
        "together_per_second": spread([1 / value for value in seconds["together"]]),
        "alone_per_second": spread([1 / value for value in seconds["alone"]]),
        "times_as_fast": ratio(seconds["alone"], seconds["together"]),
    }


def _slice(layers: Sequence[LayerSpec], rows: int) -> list[Allocation]:
    """Returns the first rows of the enumeration."""
    return [Allocation.make(layers, bits) for bits in islice(product(BITS, repeat=len(layers)), rows)]


def _draw(layers: Sequence[LayerSpec], count: int, rng: np.random.Generator) -> list[Allocation]:
    return [Allocation.make(layers, rng.integers(2, 9, len(layers)).tolist()) for _ in range(count)]


class _Weighed(PrefixRunner):
    """Notes how many bytes are kept at most."""

    most = 0

    def _advance(
        self, registers: list[Any], position: int, wanted: Collection[int], kept: dict[int, list[Any]]
    ) -> None:
        super()._advance(registers, position, wanted, kept)
        tensors = {id(value): value for state in kept.values() for value in state if isinstance(value, torch.Tensor)}
        self.most = max(self.most, sum(value.nbytes for value in tensors.values()))


def _kept_bytes(evaluator: PTQEvaluator, allocations: Sequence[Allocation]) -> int:
    """Returns the most bytes of activations, inputs included, that are kept for later allocations of a batch."""
    runner = _Weighed(evaluator.network)
    inputs = evaluator.task.splits["search"].inputs[: evaluator.batch]
    for _ in runner.run(inputs, sorted(evaluator.network.settings(allocations))):
        pass
    return runner.most
