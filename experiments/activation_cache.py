"""A cache of activations, to measure what it would save evaluators: `bench_activation_cache` says whether it pays."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from experiments.benchmark import ratio
from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.evaluate.store import Bits
from quantenv.layers import LayerSpec
from quantenv.quantize.network import QuantizedNetwork
from quantenv.quantize.prefix import PrefixRunner
from quantenv.quantize.switched import Setting

#: Parts of a search whose times are compared, for the spread.
SEGMENTS = 10


class CachedRunner(PrefixRunner):
    """A `PrefixRunner` that keeps activations between calls: the least recently used go when there are too many.

    Args:
        network: The network.
        cuts: Switched modules in front of which activations are kept.
        bound: Most bytes of kept activations.
    """

    def __init__(self, network: QuantizedNetwork, cuts: Sequence[int], bound: float) -> None:
        super().__init__(network)
        self._cuts, self.bound, self.used = cuts, bound, 0.0
        self._kept: OrderedDict[tuple[int, tuple[Setting, ...]], tuple[list[Any], int]] = OrderedDict()

    def run(self, inputs: torch.Tensor, settings: Sequence[tuple[Setting, ...]]) -> Iterator[torch.Tensor]:
        """Runs one batch of inputs, which later calls give at the same address, under many allocations."""
        for wanted in settings:
            keys = [(inputs.data_ptr(), wanted[:cut]) for cut in self._cuts]
            found = [key for key in keys if key in self._kept]
            for key in found:
                self._kept.move_to_end(key)
            start = len(found[-1][1]) if found else 0
            registers = self._kept[found[-1]][0].copy() if found else self._program.registers(inputs)
            self._network.switch(wanted)
            computed: dict[int, list[Any]] = {}
            with torch.inference_mode():
                self._advance(registers, self._program.switched[start] if found else 0, self._cuts, computed)
            for cut, key in zip(self._cuts, keys, strict=True):
                if cut in computed and key not in self._kept:
                    self._keep(key, computed[cut])
            logits: torch.Tensor = registers[self._program.output]
            yield logits

    def _keep(self, key: tuple[int, tuple[Setting, ...]], registers: list[Any]) -> None:
        size = sum(value.nbytes for value in registers if isinstance(value, torch.Tensor))
        self._kept[key] = registers, size
        self.used += size
        while self.used > self.bound:
            self.used -= self._kept.popitem(last=False)[1][1]


def replay(
    evaluator: PTQEvaluator, batches: Sequence[Sequence[Bits]], ends: Sequence[int], bound: float
) -> dict[str, float]:
    """Evaluates batches with and without the cache, alternately.

    Args:
        evaluator: Whose network and search split are used.
        batches: Distinct allocations, sorted within each batch.
        ends: The last layers of the decisions whose outputs are kept.
        bound: Most bytes of the cache.

    Returns:
        The spread, over parts of the search, of the ratio of wall times, cached to plain; under ``total`` that of all.

    Raises:
        QuantenvError: If the cache changes a result.
    """
    network, inputs = evaluator.network, evaluator.task.splits["search"].inputs
    parts = inputs.split(evaluator.batch)
    runners = [PrefixRunner(network), CachedRunner(network, decision_cuts(evaluator, ends), bound)]
    times = np.zeros((len(batches), 2))
    for index, batch in enumerate(batches):
        settings = sorted(network.settings([allocation_of(evaluator.layers, bits) for bits in batch]))
        logits = []
        for kind in (0, 1) if index % 2 else (1, 0):
            started = time.perf_counter()
            logits.append([output.clone() for part in parts for output in runners[kind].run(part, settings)])
            times[index, kind] = time.perf_counter() - started
        if not all(map(torch.equal, *logits)):
            raise QuantenvError("A cache of activations changed an evaluation: it must not.")
    sums = np.array([part.sum(0) for part in np.array_split(times, min(SEGMENTS, len(times)))])
    return {**ratio(sums[:, 1].tolist(), sums[:, 0].tolist()), "total": float(times[:, 1].sum() / times[:, 0].sum())}


def decision_cuts(evaluator: PTQEvaluator, ends: Sequence[int]) -> list[int]:
    """Returns, for each of these layers, the first switched module that depends on the weights of the next one."""
    network, layers = evaluator.network, evaluator.layers
    (base,) = network.settings([Allocation.make(layers, 8)])
    cuts = []
    for end in ends:
        weights = [2 if index == end + 1 else 8 for index in range(len(layers))]
        (changed,) = network.settings([Allocation.make(layers, weights)])
        cuts.append(next(index for index, pair in enumerate(zip(base, changed, strict=True)) if pair[0] != pair[1]))
    return cuts


def allocation_of(layers: tuple[LayerSpec, ...], bits: Bits) -> Allocation:
    """Returns the allocation of these bits."""
    weights, activations = zip(*bits, strict=True)
    return Allocation.make(layers, weights, activations)
