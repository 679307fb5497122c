"""Blocks of rows of an unfinished enumeration, kept beside its table, so that a killed one goes on where it ended."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from quantenv.core.archives import open_npz
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.reading import MIB, Schema, fit, parse_json
from quantenv.evaluation.table.file import METADATA, write_npz

logger = logging.getLogger(__name__)

FORMAT = "quantenv-rows-1"


class _About(Schema, frozen=True):
    """A block without its arrays."""

    format: Literal["quantenv-rows-1"]
    key: Annotated[str, msgspec.Meta(max_length=100)]
    first: Annotated[int, msgspec.Meta(ge=0)]
    hash: Annotated[str, msgspec.Meta(max_length=100)]


class RowBlocks:
    """A folder of blocks; several enumerations may use it, of which none sees what another one keeps.

    Args:
        folder: The folder; made when the first block is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, table: Path) -> "RowBlocks":
        """Returns the blocks of the table that will be written to a file."""
        return cls(table.with_name(f"{table.name}.rows"))

    def keep(self, key: str, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a block, atomically.

        Args:
            key: Says what is enumerated: what fixes every number.
            first: The block's first row.
            arrays: By name, uint32 (rows,).

        Raises:
            OSError: If it cannot be written.
        """
        about = {"format": FORMAT, "key": key, "first": first, "hash": _hash(arrays)}
        write_npz(self._path(key, first), about, arrays)

    def find(self, key: str, first: int, rows: int, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
        """Reads a block. One that is damaged is as good as none, with a line in the log.

        Args:
            key: As it was kept.
            first: As it was kept.
            rows: Its length.
            names: Names of its arrays.

        Returns:
            The arrays by name, uint32 (rows,), or None.
        """
        path = self._path(key, first)
        if not path.exists():
            return None
        try:
            return _read(path, key, first, rows, names)
        except QuantenvError as error:
            logger.warning("%s Its rows are evaluated again.", error)
            return None

    def remove(self) -> None:
        """Deletes all blocks, of other keys and half-written ones too, and the folder if nothing else is in it."""
        if not self.folder.is_dir():
            return
        for pattern in ("rows-*.npz", ".rows-*.npz.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: str, first: int) -> Path:
        return self.folder / f"rows-{key}-{first}.npz"


def _read(path: Path, key: str, first: int, rows: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    what = "block of rows"
    where = f"The {what} {path}"
    with open_npz(path, what) as archive:
        text = archive.array(METADATA, MIB, "u")
        about = fit(parse_json(text.tobytes(), where), _About, where)
        arrays = {name: archive.array(name, 4 * rows, "u") for name in names}
    sound = all(array.shape == (rows,) and array.dtype == np.uint32 for array in arrays.values())
    if not sound or (about.key, about.first, about.hash) != (key, first, _hash(arrays)):
        raise QuantenvError(f"{where} is damaged: it does not match its content hash or its name.")
    return arrays


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    return content_hash(
        part for name in sorted(arrays) for part in (name, arrays[name].astype("<u4", copy=False).tobytes())
    )
