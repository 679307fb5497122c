"""Look-up tables: costs measured or simulated elsewhere, in the file format HAQ ships."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantenv.allocation import MAX_BITS
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec


@dataclass(frozen=True)
class LookupTable:
    """A ``.npy`` file of shape (L, 8, 8) = [layer, weight bits - 1, activation bits - 1], layers in execution order.

    The format of HAQ's published latency tables (Wang et al., CVPR 2019).
    """

    file: Path
    """The file, absolute or relative to the working directory; int or float, nothing negative, NaN or infinite."""
    scale: float
    """Seconds or joules for one unit of the file, positive."""

    def table(self, layers: Sequence[LayerSpec]) -> np.ndarray:
        """Reads the file.

        Returns:
            Seconds or joules, float64 (L, 8, 8).

        Raises:
            QuantenvError: If the file is missing, damaged, of another shape or layer count, or holds negative or
                non-finite entries.
        """
        raw = read_array(self.file)
        expected = (len(layers), MAX_BITS, MAX_BITS)
        if raw.ndim == 3 and raw.shape[1:] == expected[1:] and len(raw) != len(layers):
            raise QuantenvError(
                f"Look-up table {self.file} has {len(raw)} layers, but the network has {len(layers)} quantizable "
                "layers: use a table made for this network."
            )
        if raw.shape != expected:
            raise QuantenvError(
                f"Look-up table {self.file} has shape {raw.shape}; expected {expected} = "
                "[layer, weight bits - 1, activation bits - 1]."
            )
        values = np.array(raw, dtype=np.float64)
        wrong = np.argwhere(~np.isfinite(values) | (values < 0))
        if len(wrong):
            layer, weight, activation = wrong[0]
            raise QuantenvError(
                f"Look-up table {self.file} holds {values[tuple(wrong[0])]} for layer {layer} "
                f"({layers[layer].name!r}) at {weight + 1}/{activation + 1} weight/activation bits; costs must be "
                "finite and not negative."
            )
        return values * self.scale


def read_array(path: Path) -> np.ndarray:
    """Opens a ``.npy`` file of numbers without running anything it may contain.

    Args:
        path: The file.

    Returns:
        A read-only view of the file, of an integer or float type.

    Raises:
        QuantenvError: If the file is missing, is not a ``.npy`` file, is truncated, or does not hold real numbers.
    """
    try:
        # Mapping checks the promised size against the file's before any memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise QuantenvError(f"Cannot read look-up table {path}: {error.strerror or error}.") from error
    except Exception as error:  # NumPy's header parser lets many types through on damaged files
        raise QuantenvError(
            f"Look-up table {path} is not a NumPy .npy file of numbers, or is damaged or truncated: {error}."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        found = array.dtype if isinstance(array, np.ndarray) else "an archive"
        raise QuantenvError(f"Look-up table {path} holds {found}; expected one array of integers or floats.")
    return array
