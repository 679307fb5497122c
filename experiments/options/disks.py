"""What is said where a disk fails a command: one sentence with what to do, and exit code 1.

What was written before stays sound: files are replaced whole, and a run's episodes only ever appended.
"""

import errno
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantenv.core.errors import QuantenvError

#: What the disk did and what to do, by the system's error number.
_FAILURES = {
    errno.ENOSPC: ("is full", "Free space"),
    errno.EDQUOT: ("holds as much as your quota allows", "Free space"),
    errno.EFBIG: ("takes no larger file", "Raise the limit on the size of files"),
    errno.EIO: ("fails", "Check it, or choose another one"),
    errno.ESTALE: ("is not connected any more", "Mount it again"),
    errno.EROFS: ("can only be read", "Make it writable, or choose another one"),
    errno.EACCES: ("does not let you in there", "Change the permissions, or choose another place"),
    errno.EPERM: ("does not let you in there", "Change the permissions, or choose another place"),
}
#: What tells a disk's failure from a user's mistake also where another error stands for it.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS)
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


class DiskError(QuantenvError):
    """A disk failed, which is no mistake in the input."""


def disk_failure(error: BaseException, place: Path | None = None) -> str | None:
    """Says what a disk did, if that is what an error comes from.

    Args:
        error: The error.
        place: What is written, where the error does not say it.

    Returns:
        What happened and what to do, such as ``The disk that holds /runs/1 is full. Free space``, without a full stop;
        None if the error is another one.
    """
    failures = [(each, _number(each)) for each in _chain(error)]
    for cause, number in failures:
        if number in _OF_THE_DISK or (number in _FAILURES and not isinstance(error, QuantenvError)):
            if isinstance(error, QuantenvError):
                return str(error).rstrip(".")
            happened, remedy = _FAILURES[number]
            path = getattr(cause, "filename", None)
            if path is None and number not in _OF_THE_DISK:
                return None  # a permission of something else
            if place is not None and (path is None or Path(path).is_relative_to(place)):
                path = place
            return f"{'A disk' if path is None else f'The disk that holds {path}'} {happened}. {remedy}"
    return None


@contextmanager
def continued_by(command: str, place: Path) -> Iterator[None]:
    """Turns a disk's failure into a sentence that says how to go on.

    Args:
        command: What continues, once the disk works again, such as ``the same command``.
        place: What is written.

    Raises:
        DiskError: If a disk fails within.
    """
    try:
        yield
    except Exception as error:
        failure = disk_failure(error, place)
        if failure is None:
            raise
        raise DiskError(f"{failure}, and continue with {command}.") from error


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Leaves a disk's failure in a thread, such as TensorBoard's, to the one that waits for it: it is raised there."""

    def hook(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is None or disk_failure(failed.exc_value, Path()) is None:
            before(failed)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    finally:
        threading.excepthook = before


def say(sentence: str) -> None:
    """Writes a sentence to stderr, unless that cannot be written either."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"quantenv: {sentence}\n")
        sys.stderr.flush()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Goes through an error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        original = getattr(error, "orig", None)  # SQLAlchemy's errors hold the driver's
        if isinstance(original, BaseException):
            yield original
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else _OF_SQLITE.get(code & 0xFF)
