"""What one inference moves and computes, for every layer and every pair of bit-widths."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantenv.core.activations import Activations, StoredTensor
from quantenv.core.allocation import MAX_BITS, MIN_BITS
from quantenv.core.layers import LayerSpec

#: Bit-widths of weights and activations, shaped to broadcast against [layer, weight bits - 1, activation bits - 1].
WEIGHT_BITS = np.arange(MIN_BITS, MAX_BITS + 1, dtype=np.float64).reshape(1, -1, 1)
ACTIVATION_BITS = np.arange(MIN_BITS, MAX_BITS + 1, dtype=np.float64).reshape(1, 1, -1)


@dataclass(frozen=True, eq=False)
class Workload:
    """One inference of one sample, layer by layer.

    A layer is charged with

    - its weights, read once at their bits, and its multiply-accumulates;
    - the tensor that it alone reads, written and read at its activation bits;
    - what is at 8 bits whatever is allocated, and so the same for every allocation: the tensors that it writes and that
      something besides layers reads, with all their reads; and the products of activations behind it, whose operands
      are such tensors.

    Tensors that several layers and nothing else read are charged to none of them; they are `together`. The network's
    input and constants are read, not written; what it puts out leaves as sums and is not counted.
    """

    layers: Sequence[LayerSpec]
    """The quantizable layers, whole, in execution order, length L."""
    activations: Activations
    """What they read and write."""

    @cached_property
    def macs(self) -> np.ndarray:
        """Multiply-accumulate operations of each layer, float64 (L, 1, 1)."""
        return _per_layer([layer.macs for layer in self.layers])

    @cached_property
    def product_macs(self) -> np.ndarray:
        """Multiply-accumulate operations of 8 x 8 bits of the products charged to each layer, float64 (L, 1, 1)."""
        macs = dict.fromkeys(self._index, 0)
        for product in self.activations.products:
            macs[product.charged_to] += product.macs
        return _per_layer(list(macs.values()))

    @cached_property
    def weight_bytes(self) -> np.ndarray:
        """Bytes of each layer's quantized weights, params x weight bits / 8, float64 (L, 8, 1)."""
        return _per_layer([layer.params for layer in self.layers]) * WEIGHT_BITS / 8

    @cached_property
    def bytes_moved(self) -> np.ndarray:
        """Bytes each layer is charged with, weights and tensors, float64 (L, 8, 8)."""
        own, always = dict.fromkeys(self._index, 0), dict.fromkeys(self._index, 0)
        for tensor in self.activations.tensors:
            if tensor.shared:
                always[tensor.charged_to] += moved(tensor)
            elif len(tensor.layers) == 1:
                own[tensor.layers[0]] += moved(tensor)
        at_bits = _per_layer(list(own.values())) * ACTIVATION_BITS
        return self.weight_bytes + (at_bits + _per_layer(list(always.values())) * MAX_BITS) / 8

    @cached_property
    def together(self) -> tuple[tuple[tuple[int, ...], np.ndarray], ...]:
        """Layers that read the same tensors, and these tensors' bytes by the most bits that one of them wants - 1."""
        found: dict[tuple[int, ...], np.ndarray] = {}
        for tensor in self.activations.tensors:
            if not tensor.shared and len(tensor.layers) > 1:
                readers = tuple(sorted(self._index[name] for name in tensor.layers))
                found[readers] = found.get(readers, 0.0) + moved(tensor) * ACTIVATION_BITS.ravel() / 8
        return tuple(sorted(found.items()))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.layers)}


def moved(tensor: StoredTensor) -> int:
    """Returns the elements of a stored tensor that are written and read for one sample."""
    return tensor.elements * tensor.written + tensor.reads


def _per_layer(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.float64).reshape(-1, 1, 1)
