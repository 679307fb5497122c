"""NumPy's .npz archives, opened safely: what an array takes is known before it is unpacked, and nothing is run.

NumPy's own reader takes an archive's word for sizes (2 MB may unpack to gigabytes), tries what is no archive as a
pickle, and raises a dozen kinds of errors.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from quantenv.core.arrays import HEADER_LIMIT, parse_npy
from quantenv.core.errors import QuantenvError, shown
from quantenv.core.reading import check_readable

#: What zipfile raises, according to the byte that is wrong; RuntimeError is that of encryption.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, KeyError)


class Archive:
    """An open .npz file."""

    def __init__(self, where: str, archive: zipfile.ZipFile) -> None:
        """Looks at the archive's directory.

        Args:
            where: What messages begin with, such as ``"The evaluation table x.npz"``.
            archive: The archive.

        Raises:
            QuantenvError: If it holds anything but arrays, each once.
        """
        self._where, self._archive = where, archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            packed = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if name == entry.filename or name in self._entries or entry.flag_bits & 1 or not packed:
                raise QuantenvError(
                    f"{where} is damaged: its entry {shown(entry.filename)} is there twice, encrypted or no array."
                )
            self._entries[name] = entry

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its arrays."""
        return tuple(self._entries)

    def array(self, name: str, most: int, kinds: str = "iuf") -> np.ndarray:
        """Reads one array.

        Args:
            name: Its name.
            most: Bytes that its numbers may have; hardly more is unpacked.
            kinds: Kinds of type that it may have; see `quantenv.core.arrays.parse_npy`.

        Returns:
            The array, in the byte order of this machine, read-only.

        Raises:
            QuantenvError: If there is none of this name, it is larger or damaged, or holds something else than `kinds`.
        """
        if name not in self._entries:
            raise QuantenvError(f"{self._where} is incomplete or something else: it has no entry {shown(name)}.")
        entry = self._entries[name]
        if entry.file_size > most + HEADER_LIMIT + 16:
            raise QuantenvError(
                f"{self._where} is damaged: its entry {shown(name)} would unpack to {entry.file_size:,} bytes; "
                f"expected at most {most:,}."
            )
        try:
            with self._archive.open(entry) as file:
                data = file.read(entry.file_size)  # without a size, a stream that is longer would be unpacked whole
        except _DAMAGE as error:
            raise QuantenvError(f"{self._where} is damaged: its entry {shown(name)} cannot be unpacked.") from error
        return parse_npy(data, f"{self._where}, entry {shown(name)},", kinds)


@contextmanager
def open_npz(path: str | Path, what: str) -> Iterator[Archive]:
    """Opens an .npz file.

    Args:
        path: The file.
        what: What messages call it, such as ``"evaluation table"``.

    Yields:
        The archive, of which no array has been read yet.

    Raises:
        QuantenvError: If it cannot be read, or is no archive of arrays.
    """
    where = f"The {what} {path}"
    check_readable(path, what=what)
    try:
        archive = zipfile.ZipFile(path)
    except PermissionError as error:
        raise QuantenvError(f"Cannot read the {what} {path}: {error.strerror}.") from error
    except _DAMAGE as error:
        raise QuantenvError(
            f"{where} is no .npz archive, or is truncated or damaged. Restore it, or remake it."
        ) from error
    with archive:
        yield Archive(where, archive)
