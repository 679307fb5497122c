"""The file of what was measured on a task so far: whatever is finished is kept, so that nothing is measured twice."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock

from quantenv.core.errors import QuantenvError
from quantenv.core.files import CACHE_VARIABLE, cache_dir, content_hash, write_text
from quantenv.core.reading import Schema, read_json

logger = logging.getLogger(__name__)

FORMAT = "quantenv-sensitivity-1"


class MeasurementsFile(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """What a file of measurements holds."""

    identity: str
    hash: str
    """Of identity and results."""
    results: dict[str, Any]


def measurement_path(task: str, scheme: str, split: str, identity: str) -> Path:
    """Returns where the measurements of one identity are kept, in the user's cache directory."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{task}-{scheme}-{split}")
    return cache_dir() / "sensitivity" / f"{readable}-{identity}.json"


class Measurements:
    """Named results of one identity in a JSON file with a hash of its content.

    The file's name holds the identity: when anything that the numbers depend on changes, another file is meant. A
    damaged file is moved aside with a warning, and everything is measured anew.

    Args:
        path: The file, from `measurement_path`.
        identity: What the results depend on, hashed.
        known: Results that need not be measured, such as those that a prepared network brings.
    """

    def __init__(self, path: Path, identity: str, known: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.path, self.identity, self._known = path, identity, known
        self._results = self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self._results

    def __getitem__(self, name: str) -> Any:
        """Returns a result that is known."""
        return self._known[name] if name in self._known else self._results[name]

    def keep(self, names: Sequence[str], results: Sequence[Any]) -> None:
        """Keeps results, made of what JSON holds, under their names.

        Raises:
            QuantenvError: If the file cannot be written.
        """
        self._results |= dict(zip(names, results, strict=True))
        self._write()

    @property
    def results(self) -> dict[str, Any]:
        """All that was measured, by name."""
        return dict(self._results)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Reads anew and, while it is entered, keeps other processes from measuring the same; waits for one that does.

        Raises:
            QuantenvError: If the folder cannot be written.
        """
        lock = filelock.FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                logger.warning("Another process measures these sensitivities (%s); waiting for it.", self.path.name)
                lock.acquire()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._results = self._read()
            yield
        finally:
            lock.release()

    def _read(self) -> dict[str, Any]:
        try:
            if not self.path.exists():
                return {}
            with self.path.open("rb"):
                pass  # what the system says when it may not be read
        except OSError as error:
            raise self._unusable(error) from error
        with contextlib.suppress(QuantenvError):
            content = read_json(self.path, MeasurementsFile)
            if content.identity == self.identity and content.hash == self._hash(content.results):
                return content.results
        aside = self.path.with_suffix(".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.replace(self.path, aside)
        logger.warning("The sensitivities in %s are damaged; moved to %s, measured anew.", self.path.name, aside.name)
        return {}

    def _write(self) -> None:
        content = {
            "format": FORMAT,
            "identity": self.identity,
            "hash": self._hash(self._results),
            "results": self._results,
        }
        try:
            write_text(self.path, json.dumps(content) + "\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _hash(self, results: dict[str, Any]) -> str:
        return content_hash([FORMAT, self.identity, json.dumps(results, sort_keys=True)])

    def _unusable(self, error: OSError) -> QuantenvError:
        return QuantenvError(
            f"Cannot keep sensitivities in {self.path.parent}: {error.strerror}. Set {CACHE_VARIABLE} to a folder that "
            "can be read and written."
        )
