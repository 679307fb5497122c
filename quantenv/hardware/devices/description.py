"""What is known of a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quantenv.core.allocation import MAX_BITS, MIN_BITS
from quantenv.core.errors import QuantenvError
from quantenv.hardware.energy import AnalyticEnergy
from quantenv.hardware.latency import LinearLatency, RooflineLatency
from quantenv.hardware.lookup import LookupTable


@dataclass(frozen=True)
class Device:
    """Hardware as cost tables see it. Size and BOPs do not depend on it.

    Raises:
        QuantenvError: If the bit-widths are not whole numbers from 1 to 8, ascending, at least one of each kind.
    """

    name: str
    """Short name, for messages and reports."""
    description: str
    """One line on what it stands for."""
    weight_bits: tuple[int, ...]
    """Weight bit-widths it supports, ascending, 1-8."""
    activation_bits: tuple[int, ...]
    """Activation bit-widths it supports, ascending, 1-8."""
    latency: LinearLatency | RooflineLatency | LookupTable | None = None
    """How long a layer takes; None if the device does not define latency."""
    energy: AnalyticEnergy | LookupTable | None = None
    """What energy a layer takes; None if the device does not define energy."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each constant comes from, by its name, such as ``"latency.bytes_per_second"``."""

    def __post_init__(self) -> None:
        for kind, bits in (("weight", self.weight_bits), ("activation", self.activation_bits)):
            check_bits(f"Device {self.name!r}: the {kind} bits", bits)

    @property
    def supports(self) -> np.ndarray:
        """Which pairs of bits exist, bool (8, 8) = [weight bits - 1, activation bits - 1]."""
        widths = np.arange(MIN_BITS, MAX_BITS + 1)
        return np.logical_and.outer(np.isin(widths, self.weight_bits), np.isin(widths, self.activation_bits))


def check_bits(what: str, bits: object) -> tuple[int, ...]:
    """Checks a set of bit-widths.

    Args:
        what: What the bits are, to begin the error with.
        bits: The bits, a tuple or list.

    Returns:
        The bits as a tuple.

    Raises:
        QuantenvError: If they are not distinct whole numbers from 1 to 8 in ascending order, at least one.
    """
    if (
        not isinstance(bits, list | tuple)
        or not bits
        or not all(type(bit) is int and MIN_BITS <= bit <= MAX_BITS for bit in bits)
        or list(bits) != sorted(set(bits))
    ):
        raise QuantenvError(
            f"{what} are {bits!r}; expected distinct whole numbers from {MIN_BITS} to {MAX_BITS}, "
            "in ascending order, at least one."
        )
    return tuple(bits)
