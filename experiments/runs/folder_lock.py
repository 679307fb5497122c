"""One process at a time writes a folder: a lock that ends with its process, and a note that says whose it is.

The lock is the operating system's (flock, by the library filelock), so it is never stale: it is free as soon as its
holder has ended, however that was, and neither the lock file nor the note that a killed process left behind mean
anything. Readers take no lock.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.options.console import announcements
from experiments.options.disks import continued_by
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text

LOCK, NOTE = ".lock", ".writer.json"
#: Most bytes of a note that are read.
LONGEST_NOTE = 4096


class FolderInUseError(QuantenvError):
    """Another process writes the folder."""


@contextmanager
def sole_writer(folder: Path, command: str) -> Iterator[None]:
    """Keeps other processes from writing a folder meanwhile, and tells them who does.

    Args:
        folder: The folder, which is there.
        command: What this process does, such as ``quantenv train``.

    Raises:
        FolderInUseError: If another process, or another thread of this one, writes it.
        OSError: If the lock file cannot be made.
    """
    lock, note = FileLock(folder / LOCK, timeout=0), folder / NOTE
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"{folder} is being written by {_holder(note)}: wait until that has ended, or stop it, and give the same "
            "command again."
        ) from error
    except NotImplementedError:
        announcements().print(
            f"{folder} lies on a file system without locks: see to it that no other process writes it meanwhile."
        )
        yield
        return
    try:
        content = {
            "command": command,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_text(note, json.dumps(content) + "\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


@contextmanager
def kept_folder(folder: Path, command: str, continuation: str) -> Iterator[None]:
    """Makes a folder that a command keeps writing and can continue, unless it is there, and is its sole writer.

    Args:
        folder: The folder.
        command: What this process does, such as ``quantenv train``.
        continuation: What continues after a disk has failed, such as ``the same command``.

    Raises:
        FolderInUseError: If another process writes it.
        DiskError: If a disk fails within.
    """
    with continued_by(continuation, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder, command):
            yield


def _holder(note: Path) -> str:
    """Says who holds a lock, as far as its note can be read."""
    try:
        with note.open("rb") as file:
            content: Any = json.loads(file.read(LONGEST_NOTE))
        values = {name: str(content[name])[:80] for name in ("command", "process", "host", "since")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return "`{command}`, process {process} on {host}, since {since}".format(**values)
