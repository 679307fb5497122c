"""Peak activation memory: the most bytes of stored tensors that are alive at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from quantenv.core.activations import Activations
from quantenv.core.allocation import MAX_BITS, MIN_BITS
from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.layers import LayerSpec
from quantenv.hardware.rows import CostRows, Term, checked_bits


@dataclass(frozen=True, eq=False)
class PeakMemory:
    """The greatest sum, over the steps of execution, of the bytes of the tensors that are alive.

    A step writes one tensor while those that are still to be read lie beside it, in the order of the network's graph;
    a tensor takes elements x stored bits / 8 bytes. Weights are not in it (they are `size`), nor is what the network
    puts out. Each step alone is a cost like any other, a sum over layers and terms (`rows`), and a limit of the maximum
    is the same limit of every step: so budgets, masks and solvers stay exact.
    """

    metric: ClassVar[str] = "memory"
    layers: int
    """Quantizable layers or channel groups, L."""
    elements: np.ndarray
    """Of each tensor, int64 (T,)."""
    readers: tuple[tuple[int, ...], ...]
    """Indices of the layers that read each tensor, the first of a layer's channel groups; none where it is kept at 8
    bits, length T."""
    charged_to: tuple[int, ...]
    """Index of the layer in whose look-ups each tensor that is kept at 8 bits lies, length T."""
    alive: np.ndarray
    """Which tensors are alive at each step, bool (S, T); steps with no other tensors than another one has are left
    out."""

    def costs(self, bits: np.ndarray) -> np.ndarray:
        """Returns the bytes of allocations, (weight bits, activation bits) int64 (..., L, 2), as float64 (...)."""
        activation = bits[..., 1]
        if activation.ndim == 2 and len(activation) and (activation == activation[0]).all():
            return np.full(len(activation), self.costs(bits[0]))  # as where weights alone are decided
        key = activation.tobytes()
        if activation.ndim == 1 and self._last and self._last[0][0] == key:
            return self._last[0][1]
        stored = np.full((*activation.shape[:-1], len(self.elements)), float(MAX_BITS))
        for tensor, readers in enumerate(self.readers):
            if readers:
                stored[..., tensor] = activation[..., list(readers)].max(axis=-1)
        peak: np.ndarray = (stored * self.elements / 8 @ self.alive.T).max(axis=-1)
        if activation.ndim == 1:
            self._last[:] = [(key, peak)]
        return peak

    def cost(self, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> float:
        """Returns the bytes of one allocation; see `quantenv.hardware.CostTable.cost`."""
        weight = checked_bits("weight", weight_bits, self.layers)
        return float(self.costs(np.stack([weight, checked_bits("activation", activation_bits, self.layers)], axis=-1)))

    @property
    def reference(self) -> float:
        """The bytes with 8-bit activations."""
        return self.cost((MAX_BITS,) * self.layers, (MAX_BITS,) * self.layers)

    @cached_property
    def rows(self) -> CostRows:
        """Every step as a sum: one row each."""
        values, terms = np.zeros((len(self.alive), self.layers, 1, MAX_BITS)), dict[tuple[int, ...], np.ndarray]()
        for tensor, readers in enumerate(self.readers):
            size = self.elements[tensor] * np.arange(MIN_BITS, MAX_BITS + 1) / 8
            by_step = self.alive[:, tensor, None] * (size if readers else size[-1])
            if len(readers) > 1:
                terms[readers] = terms.get(readers, 0.0) + by_step
            else:
                values[:, readers[0] if readers else self.charged_to[tensor], 0] += by_step
        values = np.broadcast_to(values, (*values.shape[:2], MAX_BITS, MAX_BITS))
        return CostRows(values, tuple(Term(readers, by_step) for readers, by_step in sorted(terms.items())))

    @cached_property
    def _last(self) -> list[tuple[bytes, np.ndarray]]:
        """The last single allocation's activations and bytes: weights alone may change from one to the next."""
        return []


def peak_memory(layers: Sequence[LayerSpec], activations: Activations) -> PeakMemory:
    """Describes the activation memory of a network.

    Args:
        layers: Its quantizable layers or channel groups, in execution order.
        activations: What they read and write.
    """
    index = {whole(layers[part[0]]).name: part[0] for part in parts_of(layers)}
    tensors = activations.tensors
    first, last = (np.array(column) for column in zip(*((each.first, each.last) for each in tensors), strict=True))
    steps = np.arange(len(tensors) + 1)[:, None]
    alive = (first <= steps) & (steps <= last)
    alive = np.unique(alive, axis=0)
    within = (alive[:, None] <= alive).all(axis=2) & ~np.eye(len(alive), dtype=bool)
    return PeakMemory(
        layers=len(layers),
        elements=np.array([each.elements for each in tensors]),
        readers=tuple(() if each.shared else tuple(sorted(index[name] for name in each.layers)) for each in tensors),
        charged_to=tuple(index[each.charged_to] for each in tensors),
        alive=alive[~within.any(axis=1)],
    )
