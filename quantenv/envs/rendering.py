"""An allocation as text: a bar per layer."""

from collections.abc import Sequence

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.core.layers import LayerSpec


def allocation_text(layers: Sequence[LayerSpec], bits: np.ndarray) -> str:
    """Draws one line per layer: its name, then a bar and a number for weight and for activation bits.

    Args:
        layers: The network's layers.
        bits: int (L, 2), weight and activation bits; 0 where nothing is settled yet, drawn as ``?``.

    Returns:
        L lines of text.
    """
    width = max(len(layer.name) for layer in layers)
    return "\n".join(
        f"{layer.name:<{width}}  W {_bar(weight)}  A {_bar(activation)}"
        for layer, (weight, activation) in zip(layers, np.asarray(bits).tolist(), strict=True)
    )


def _bar(bits: int) -> str:
    return "█" * bits + "·" * (MAX_BITS - bits) + f" {bits or '?'}"
