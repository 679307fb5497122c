"""Cost tables: what every layer costs at every pair of bit-widths, compiled once from the device description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantenv.core.activations import Activations
from quantenv.core.allocation import MAX_BITS
from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.layers import LayerSpec
from quantenv.hardware.devices import Device
from quantenv.hardware.memory import PeakMemory, peak_memory
from quantenv.hardware.quantities import METRICS
from quantenv.hardware.rows import CostRows, Term, checked_bits, stacked
from quantenv.hardware.workload import ACTIVATION_BITS, WEIGHT_BITS, Workload

__all__ = ["METRICS", "CostTable", "NetworkCosts", "codebook_bytes", "compile_costs", "overhead_bytes"]

#: Bytes of a centroid: float32.
CENTROID_BYTES = 4


@dataclass(frozen=True, eq=False)
class CostTable:
    """One metric of every layer at every pair of bit-widths; a network's cost is the sum of its entries and terms.

    Entries of bit-widths that the device does not support are there too, so that the 8-bit reference always exists;
    `Device.supports` says which may be used.

    Raises:
        QuantenvError: If the metric is unknown, or the values are not (L, 8, 8), finite and non-negative.
    """

    metric: str
    """Name of the metric, one of `METRICS`."""
    values: np.ndarray
    """float64 (L, 8, 8) = [layer, weight bits - 1, activation bits - 1] in bytes, bit operations, seconds or joules.
    A read-only copy of what was given."""
    terms: tuple[Term, ...] = ()
    """What tensors that several layers read cost, with values (8,)."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 3 or values.shape[1:] != (MAX_BITS, MAX_BITS):
            raise QuantenvError(f"A {self.metric} table has shape {values.shape}; expected (layers, 8, 8).")
        if not (np.isfinite(values) & (values >= 0)).all():
            raise QuantenvError(f"The {self.metric} table holds negative or non-finite costs.")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @cached_property
    def rows(self) -> CostRows:
        """The same as one row over the layers."""
        return CostRows(self.values[None], tuple(Term(term.units, term.values[None]) for term in self.terms))

    def costs(self, bits: np.ndarray) -> np.ndarray:
        """Returns the costs of allocations, (weight bits, activation bits) int64 (..., L, 2), as float64 (...)."""
        return self.rows.cost_of(bits)[0]

    def cost(self, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> float:
        """Sums the entries and terms of an allocation.

        Args:
            weight_bits: Weight bits of each layer, length L, 1-8.
            activation_bits: Activation bits of each layer, length L, 1-8.

        Returns:
            The network's cost, SI units.

        Raises:
            QuantenvError: If a length is not L, or a bit-width is not a whole number from 1 to 8.
        """
        layers = len(self.values)
        weight, activation = (
            checked_bits("weight", weight_bits, layers),
            checked_bits("activation", activation_bits, layers),
        )
        return float(self.costs(np.stack([weight, activation], axis=-1)))

    @property
    def reference(self) -> float:
        """The network's cost with 8-bit weights and activations, SI units: what budget ratios refer to."""
        bits = (MAX_BITS,) * len(self.values)
        return self.cost(bits, bits)


class NetworkCosts:
    """All metrics of whole allocations at once."""

    def __init__(self, tables: Mapping[str, CostTable | PeakMemory]) -> None:
        """Stacks the tables.

        Args:
            tables: Cost tables by metric; a maximum comes last.
        """
        sums = [table for table in tables.values() if isinstance(table, CostTable)]
        self._peaks = [table for table in tables.values() if not isinstance(table, CostTable)]
        self._rows = stacked([table.rows for table in sums])

    def of(self, bits: np.ndarray) -> np.ndarray:
        """Returns the costs of allocations, int64 (..., L, 2), as float64 (K, ...), in the order of the tables."""
        sums = self._rows.cost_of(bits)
        return np.concatenate([sums, *(peak.costs(bits)[None] for peak in self._peaks)])


def compile_costs(
    layers: Sequence[LayerSpec], activations: Activations, device: Device, codebooks: bool = False
) -> dict[str, CostTable | PeakMemory]:
    """Compiles the cost table of every metric that a device defines.

    What tensors cost is charged as `quantenv.hardware.workload.Workload` says; products of activations count as 8 x 8
    bits in bit operations, latency and energy. A look-up table says everything of its metric.

    - ``size``, bytes: params x weight bits / 8. Only the quantized weights count, as in HAQ (Wang et al., CVPR 2019)
      and HAWQ-V3 (Yao et al., ICML 2021); see `overhead_bytes` for the rest. With codebooks, see `codebook_bytes` for
      what is added.
    - ``bops``, bit operations: MACs x weight bits x activation bits, one sample, as HAWQ-V3 counts them.
    - ``latency``, seconds, and ``energy``, joules, for one sample: the device's models, if it has them.

    A channel group costs its share of what its layer would cost at the group's bits: the share of output channels,
    which is that of parameters and MACs. So the groups' costs add up to the layer's where their bits are equal, in
    every metric and on every device (sizes and bit operations exactly, others up to rounding). The layer's input is
    read once for all groups, and what running them one after the other costs besides is not counted.

    Args:
        layers: The network's quantizable layers or channel groups, in execution order.
        activations: The network's stored tensors and products.
        device: The device.
        codebooks: Whether weights are stored as indices into a codebook for each layer (scheme ``k-means``), so that
            size is indices + codebook. The other metrics do not change: what a look-up of centroids takes in time and
            energy is no part of the devices' models.

    Returns:
        The tables by metric, in the order of `METRICS`.

    Raises:
        QuantenvError: If a look-up table cannot be read or does not fit the network, or the activations are another's.
    """
    activations.check_fits(layers)
    parts = parts_of(layers)
    work = Workload([whole(layers[part[0]]) for part in parts], activations)
    ones, bytes_of_codebooks = np.ones_like(ACTIVATION_BITS), codebook_bytes() if codebooks else 0.0
    values = {
        "size": (work.weight_bytes + bytes_of_codebooks) * ones,
        "bops": work.macs * WEIGHT_BITS * ACTIVATION_BITS + work.product_macs * MAX_BITS**2,
    }
    terms: dict[str, tuple[Term, ...]] = {}
    for metric, model in (("latency", device.latency), ("energy", device.energy)):
        if model is not None:
            values[metric] = model.table(work)
            readers = [(tuple(parts[layer][0] for layer in units), moved) for units, moved in work.together]
            terms[metric] = tuple(Term(units, model.per_byte * moved) for units, moved in readers if model.per_byte)
    if len(parts) < len(layers):
        values = {metric: _shared(each, layers, parts) for metric, each in values.items()}
    tables: dict[str, CostTable | PeakMemory] = {
        metric: CostTable(metric, each, terms.get(metric, ())) for metric, each in values.items()
    }
    return {**tables, PeakMemory.metric: peak_memory(layers, activations)}


def _shared(values: np.ndarray, layers: Sequence[LayerSpec], parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Divides the costs of whole layers, (wholes, 8, 8), among their groups: (L, 8, 8)."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[np.argsort(np.concatenate(parts))]
    channels = np.array([[layer.out_channels, whole(layer).out_channels] for layer in layers], dtype=np.float64)
    channels[channels[:, 0] == channels[:, 1]] = 1.0  # a whole layer's cost stays what it is, to the last digit
    return values[owner] * channels[:, 0, None, None] / channels[:, 1, None, None]


def codebook_bytes() -> np.ndarray:
    """Returns the bytes of one layer's codebook: 2**bits float32 centroids, float64 (1, 8, 1).

    With the indices it makes the size of Han et al. 2016 (Deep Compression, eq. 1: n log2(k) + k b bits, b = 32). HAQ's
    published code counts the indices alone. A codebook of 8 bits takes 1 KiB: more than the indices of a layer of fewer
    than 1,024 weights, as in the digits task's network.
    """
    return CENTROID_BYTES * 2**WEIGHT_BITS


def overhead_bytes(layers: Sequence[LayerSpec]) -> int:
    """Returns the bytes that a quantized network stores besides its quantized weights.

    A float32 scale per output channel and an int32 bias per bias element. They are the same for every allocation, so
    size tables and budgets leave them out and reports state them. Channel groups need no more of them; which group a
    channel is in is not counted: with the channels sorted by group (and the next layer's inputs alike) it is one
    number for each group.
    """
    return sum(4 * layer.out_channels + 4 * layer.bias_params for layer in layers)
