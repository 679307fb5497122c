"""Analytic latency models: seconds of every layer at every pair of bit-widths."""

import math
from dataclasses import dataclass

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.hardware.workload import ACTIVATION_BITS, WEIGHT_BITS, Workload


@dataclass(frozen=True)
class LinearLatency:
    """``alpha * bytes moved + beta * MACs * f(wb, ab)``: memory and compute one after the other.

    ``f(wb, ab) = (wb * ab / 64) ** p`` is the time of a multiply-accumulate relative to 8 x 8 bits: f(8, 8) = 1, and
    p is chosen such that f(4, 4) = `relative_time_4bit`; for 0.3, p = log(0.3) / log(0.25) = 0.868. Slightly less than
    proportional to the product of the bits (p = 1): narrow operations carry a fixed overhead.
    """

    seconds_per_byte: float
    """alpha, s/byte, positive."""
    seconds_per_mac: float
    """beta, s per 8 x 8-bit multiply-accumulate, positive."""
    relative_time_4bit: float
    """f(4, 4), in (0, 1]."""

    @property
    def per_byte(self) -> float:
        """Seconds of a byte of a tensor that is charged to no layer."""
        return self.seconds_per_byte

    def table(self, work: Workload) -> np.ndarray:
        """Returns the seconds for one sample, float64 (L, 8, 8)."""
        exponent = math.log(self.relative_time_4bit) / math.log(4 * 4 / MAX_BITS**2)
        relative_time = (WEIGHT_BITS * ACTIVATION_BITS / MAX_BITS**2) ** exponent
        macs = work.macs * relative_time + work.product_macs
        return self.seconds_per_byte * work.bytes_moved + self.seconds_per_mac * macs


@dataclass(frozen=True)
class RooflineLatency:
    """The longer of memory time and compute time, which overlap (Williams et al., CACM 2009).

    Memory time is bytes moved / bandwidth. Compute time is MACs / throughput, where operands are rounded up to the
    next native width and throughput goes as 1 / (weight width x activation width). Three kinds of hardware differ
    only in their native widths:

    - fused 2-bit bricks (BitFusion): 2, 4, 8, so 3-bit operands take the time of 4;
    - bit-serial (BISMO): every width, cycles proportional to weight bits x activation bits;
    - one fixed width (int8 CPU): 8 only, so fewer bits compute no faster.

    What is charged to a layer overlaps: the longer of its memory time, with all traffic charged to it, and its compute
    time, with the products of activations charged to it, at 8 x 8 bits. Traffic of tensors that several layers read is
    charged to none of them, so it overlaps with nothing and is added: the network takes no longer than that, and the
    masks are exact for it. Utilisation is taken as perfect: layers too small or too oddly shaped to fill the array are
    flattered.
    """

    bytes_per_second: float
    """Memory bandwidth, bytes/s, positive."""
    macs_per_second: float
    """Peak 8 x 8-bit multiply-accumulates per second, positive."""
    native_weight_bits: tuple[int, ...]
    """Weight widths the arithmetic has, ascending, ending in 8."""
    native_activation_bits: tuple[int, ...]
    """Activation widths the arithmetic has, ascending, ending in 8."""

    @property
    def per_byte(self) -> float:
        """Seconds of a byte of a tensor that is charged to no layer."""
        return 1 / self.bytes_per_second

    def table(self, work: Workload) -> np.ndarray:
        """Returns the seconds for one sample, float64 (L, 8, 8)."""
        weight_width = _round_up(WEIGHT_BITS, self.native_weight_bits)
        activation_width = _round_up(ACTIVATION_BITS, self.native_activation_bits)
        throughput = self.macs_per_second * MAX_BITS**2 / (weight_width * activation_width)
        compute = work.macs / throughput + work.product_macs / self.macs_per_second
        return np.maximum(work.bytes_moved / self.bytes_per_second, compute)


def _round_up(bits: np.ndarray, native: tuple[int, ...]) -> np.ndarray:
    return np.array(native, dtype=np.float64)[np.searchsorted(native, bits)]
