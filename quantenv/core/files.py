"""Files that are never half-written, content hashes, and the folder where computed things are kept."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

CACHE_VARIABLE = "QUANTENV_CACHE"
#: Names the store of evaluations where no option does, and what it says if there is to be none.
STORE_VARIABLE, STORE_OFF = "QUANTENV_STORE", "off"


def cache_dir() -> Path:
    """Returns the folder of recomputable files: ``$QUANTENV_CACHE``, or the user's cache directory."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else platformdirs.user_cache_path("quantenv")


def data_dir() -> Path:
    """Returns the user's data directory, where what was evaluated and prepared is kept."""
    return platformdirs.user_data_path("quantenv")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets what the system raises within say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def check_place(path: Path) -> None:
    """Checks that a file can be written somewhere, before long work: writes an empty one beside it, and deletes it.

    Args:
        path: The file. Missing parent folders are made, and removed again.

    Raises:
        OSError: If it cannot be written; its `filename` is the path.
    """
    with naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        made = [folder for folder in path.parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            Path(aside).unlink()
        finally:
            for folder in filter(Path.exists, made):
                folder.rmdir()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file aside and renames it, so that no reader or crash ever sees half of it.

    Args:
        path: Final path. Missing parent folders are made.
        write: Receives the open binary file and writes the content.

    Raises:
        OSError: If it cannot be written; its `filename` is the final path.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)  # mkstemp's files are their owner's alone
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def content_hash(parts: Iterable[bytes | str]) -> str:
    """Hashes a sequence of byte strings and texts, each delimited by its length.

    Returns:
        The first 16 hexadecimal digits of the SHA-256.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]
