"""The file of an evaluation table: one compressed npz, a JSON description beside arrays, read without pickle."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantenv.errors import QuantenvError
from quantenv.files import write_atomically

#: Entry that holds the description: JSON as UTF-8, in a uint8 array.
METADATA = "metadata"


def write_npz(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a description and arrays, atomically. The same content always makes the same bytes."""
    text = json.dumps(metadata, sort_keys=True).encode()
    entries = {METADATA: np.frombuffer(text, dtype=np.uint8), **arrays}
    write_atomically(path, lambda file: np.savez_compressed(file, **entries))  # type: ignore[arg-type]


def read_npz(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_npz` wrote.

    Returns:
        The description, and the arrays by name, in the byte order of this machine.

    Raises:
        QuantenvError: If the file is missing, truncated, damaged, or something else.
    """
    try:
        # Not np.load by name: it would take a bare array or a pickle for something to try.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise QuantenvError(f"{path} is damaged: the checksum of {damaged!r} is wrong. Restore or remake it.")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        metadata = json.loads(arrays.pop(METADATA).tobytes())
    except FileNotFoundError as error:
        raise QuantenvError(f"There is no evaluation table {path}.") from error
    except KeyError as error:
        raise QuantenvError(f"{path} is not an evaluation table: it has no entry {error}.") from error
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise QuantenvError(f"{path} is not an evaluation table, or is truncated or damaged: {error}.") from error
    if not isinstance(metadata, dict):
        raise QuantenvError(f"{path} is not an evaluation table: its entry {METADATA!r} is no JSON object.")
    return metadata, {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
