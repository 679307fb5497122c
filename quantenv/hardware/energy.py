"""Analytic energy model: joules of every layer at every pair of bit-widths."""

from dataclasses import dataclass

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.hardware.workload import ACTIVATION_BITS, WEIGHT_BITS, Workload


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

    @property
    def per_byte(self) -> float:
        """Joules of a byte of a tensor that is charged to no layer."""
        return self.joules_per_byte

    def table(self, work: Workload) -> np.ndarray:
        """Returns the joules for one sample, float64 (L, 8, 8)."""
        layers = self.mac_energy(np.sqrt(WEIGHT_BITS * ACTIVATION_BITS)) * work.macs
        products = self.mac_energy(np.array(float(MAX_BITS))) * work.product_macs
        return self.joules_per_byte * work.bytes_moved + layers + products

    def mac_energy(self, bits: np.ndarray) -> np.ndarray:
        """Returns the joules of one multiply-accumulate with both operands `bits` wide (real numbers, any shape)."""
        widths, joules = (np.array(column, dtype=np.float64) for column in zip(*self.joules_per_mac, strict=True))
        if len(widths) == 1:
            return np.full(np.shape(bits), joules[0])
        left = np.clip(np.searchsorted(widths, bits, side="right") - 1, 0, len(widths) - 2)
        slope = (np.diff(np.log(joules)) / np.diff(widths))[left]
        return joules[left] * np.exp(slope * (bits - widths[left]))
