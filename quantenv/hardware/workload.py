"""What one inference moves and computes, for every layer and every pair of bit-widths."""

from collections.abc import Sequence

import numpy as np

from quantenv.allocation import MAX_BITS, MIN_BITS
from quantenv.layers import LayerSpec

#: Bit-widths of weights and activations, shaped to broadcast against [layer, weight bits - 1, activation bits - 1].
WEIGHT_BITS = np.arange(MIN_BITS, MAX_BITS + 1, dtype=np.float64).reshape(1, -1, 1)
ACTIVATION_BITS = np.arange(MIN_BITS, MAX_BITS + 1, dtype=np.float64).reshape(1, 1, -1)


def macs(layers: Sequence[LayerSpec]) -> np.ndarray:
    """Returns the multiply-accumulate operations of each layer for one sample, float64 (L, 1, 1)."""
    return _per_layer([layer.macs for layer in layers])


def weight_bytes(layers: Sequence[LayerSpec]) -> np.ndarray:
    """Returns the bytes of each layer's quantized weights, params x weight bits / 8, float64 (L, 8, 1)."""
    return _per_layer([layer.params for layer in layers]) * WEIGHT_BITS / 8


def bytes_moved(layers: Sequence[LayerSpec]) -> np.ndarray:
    """Returns the bytes each layer reads and writes for one sample (batch of one), float64 (L, 8, 8).

    Weights once at their bits, plus input and output elements at the activation bits. The output is really
    stored at the bits of the layer that reads it next; it is approximated as written at the layer's own
    activation bits, because a table entry may depend on its own layer only. Likewise a layer that runs more than
    once is counted with the traffic of one call.
    """
    elements = _per_layer([layer.input_elements + layer.output_elements for layer in layers])
    return weight_bytes(layers) + elements * ACTIVATION_BITS / 8


def _per_layer(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.float64).reshape(-1, 1, 1)
