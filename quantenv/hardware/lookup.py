"""Look-up tables: costs measured or simulated elsewhere, in the file format HAQ ships."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.core.arrays import parse_npy
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import read_bytes
from quantenv.hardware.workload import Workload


@dataclass(frozen=True)
class LookupTable:
    """A ``.npy`` file of shape (L, 8, 8) = [layer, weight bits - 1, activation bits - 1], layers in execution order.

    The format of HAQ's published latency tables (Wang et al., CVPR 2019).
    """

    file: Path
    """The file, absolute or relative to the working directory; int or float, nothing negative, NaN or infinite."""
    scale: float
    """Seconds or joules for one unit of the file, positive."""

    @property
    def per_byte(self) -> float:
        """Nothing: the file says what layers cost, tensors that several of them read included."""
        return 0.0

    def table(self, work: Workload) -> np.ndarray:
        """Reads the file.

        Returns:
            Seconds or joules, float64 (L, 8, 8).

        Raises:
            QuantenvError: If the file is missing, damaged, of another shape or layer count, or holds negative or
                non-finite entries.
        """
        where = f"The look-up table {self.file}"
        layers = work.layers
        raw = parse_npy(read_bytes(self.file, what="look-up table"), where)
        expected = (len(layers), MAX_BITS, MAX_BITS)
        if raw.ndim == 3 and raw.shape[1:] == expected[1:] and len(raw) != len(layers):
            raise QuantenvError(
                f"{where} has {len(raw)} layers, but the network has {len(layers)} quantizable "
                "layers: use a table made for this network."
            )
        if raw.shape != expected:
            raise QuantenvError(
                f"{where} has shape {raw.shape}; expected {expected} = [layer, weight bits - 1, activation bits - 1]."
            )
        values = np.array(raw, dtype=np.float64)
        wrong = np.argwhere(~np.isfinite(values) | (values < 0))
        if len(wrong):
            layer, weight, activation = wrong[0]
            raise QuantenvError(
                f"{where} holds {values[tuple(wrong[0])]} for layer {layer} "
                f"({layers[layer].name!r}) at {weight + 1}/{activation + 1} weight/activation bits; costs must be "
                "finite and not negative."
            )
        with np.errstate(over="ignore"):
            scaled = values * self.scale
        if not np.isfinite(scaled).all():
            raise QuantenvError(f"{where} times its scale, {self.scale:g}, is not finite.")
        return scaled
