"""Analytic energy model: joules of every layer at every pair of bit-widths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantenv.hardware.workload import ACTIVATION_BITS, WEIGHT_BITS, bytes_moved, macs
from quantenv.layers import LayerSpec


@dataclass(frozen=True)
class AnalyticEnergy:
    """``bytes moved x e_mem + MACs x e_MAC(bits)``.

    e_MAC is published for a few equal operand widths only. A pair (wb, ab) counts as the geometric mean of its bits,
    ``b = sqrt(wb * ab)``, because the cells of an array multiplier, and so its switching energy, go with the product
    of the operand widths; the maximum of the two would say that fewer weight bits at 8-bit activations save nothing.
    Between published widths log(e_MAC) is linear in b; outside, the nearest segment is continued (below 2 bits the one
    from 2 to 4). A single published width holds for all.
    """

    joules_per_byte: float
    """e_mem, J/byte, positive."""
    joules_per_mac: tuple[tuple[int, float], ...]
    """(bits, e_MAC in J) for operands of equal width, ascending in bits, positive, at least one."""

    def table(self, layers: Sequence[LayerSpec]) -> np.ndarray:
        """Returns the joules for one sample, float64 (L, 8, 8)."""
        mac_energy = self.mac_energy(np.sqrt(WEIGHT_BITS * ACTIVATION_BITS))
        return self.joules_per_byte * bytes_moved(layers) + mac_energy * macs(layers)

    def mac_energy(self, bits: np.ndarray) -> np.ndarray:
        """Returns the joules of one multiply-accumulate with both operands `bits` wide (real numbers, any shape)."""
        widths, joules = (np.array(column, dtype=np.float64) for column in zip(*self.joules_per_mac, strict=True))
        if len(widths) == 1:
            return np.full(np.shape(bits), joules[0])
        left = np.clip(np.searchsorted(widths, bits, side="right") - 1, 0, len(widths) - 2)
        slope = (np.diff(np.log(joules)) / np.diff(widths))[left]
        return joules[left] * np.exp(slope * (bits - widths[left]))
