"""What recorded files were made from, in one JSON file, and whether that is what lies here now."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from experiments.studies.recorded import Recorded, located
from experiments.studies.source_tree import SourceTree, yaml_hash
from quantenv.core.archives import open_npz
from quantenv.core.files import content_hash, write_text
from quantenv.core.reading import JSON_LIMIT, Schema, parse_json, read_json
from quantenv.evaluation.table.file import METADATA

FORMAT = "quantenv-recorded-1"
#: Where a table's description says how it was made; its rows do not depend on it.
_OF_THE_MAKING = ("hash", "provenance", "evaluator_identity", "task_identity")


class Making(Schema, frozen=True):
    """How files were made."""

    command: str
    """The command."""
    inputs: dict[str, str]
    """Hash of each input by what it is: ``code quantenv.envs``, ``file experiments/configs/haq.yaml``, ``data ...``,
    ``options``."""
    date: str
    """Day, UTC."""
    seconds: float
    """What the command took."""
    machine: str
    """Processor, cores, Python and torch."""
    revision: str | None
    """Commit of the code; marked if files were changed."""
    kept: list[str] = msgspec.field(default_factory=list)
    """Why inputs that moved meanwhile change nothing, as somebody said who looked."""


class Inputs(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """The content of the file."""

    unrecorded: list[str]
    """Results whose inputs are not known: recorded before there was this file."""
    made: dict[str, Making]
    """The others, by name."""
    files: dict[str, str]
    """Hash of each recorded file, as the last command that wrote it left it."""


@dataclass(frozen=True)
class Place:
    """Where files, code and data are looked for."""

    root: Path
    """Folder of the repository."""
    sources: SourceTree
    """Its code."""
    data: Path | None
    """``$QUANTENV_DATA``; None if it is not here."""

    def inputs(self, recorded: Recorded) -> dict[str, str]:
        """Hashes what a result depends on, as it is now, without data and files that are not here."""
        options = [*recorded.arguments, json.dumps(dict(recorded.variables), sort_keys=True)]
        configs = [f"{name}.yaml" for name in (f"agents/{agent}" for agent in recorded.agents)]
        for name in (*recorded.configs, *configs):
            path = self.root / "experiments" / "configs" / name
            if path.is_file():
                options += [name, yaml_hash(path)]
        hashes = self.sources.hashes(recorded.roots, recorded.left_out)
        found = {f"code {package}": value for package, value in hashes.items()}
        found["options"] = content_hash(options)
        found |= {f"file {name}": value for name in recorded.reads if (value := numbers_hash(located(self.root, name)))}
        if self.data is not None:
            found |= {f"data {name}": value for name in recorded.data if (value := file_hash(self.data / name))}
        return found

    def moved(self, recorded: Recorded, known: Inputs) -> list[str]:
        """Says why a result is stale by itself, whatever what it reads may be; nothing if it is fresh."""
        missing = [f"{name} is missing" for name in recorded.files if not located(self.root, name).is_file()]
        if missing:
            return missing
        if recorded.name in known.unrecorded or recorded.name not in known.made:
            return ["what it was made from is not known"]
        changed = [
            f"{name} is not as it was made"
            for name in recorded.files
            if file_hash(located(self.root, name)) != known.files.get(name)
        ]
        if recorded.given or changed:
            return changed
        before, now = known.made[recorded.name].inputs, self.inputs(recorded)
        names = sorted(now.keys() | {name for name in before if not name.startswith("data ")})
        return [f"{name.removeprefix('file ')} moved" for name in names if before.get(name) != now.get(name)]


def stale(place: Place, table: Sequence[Recorded], known: Inputs) -> dict[str, list[str]]:
    """Says of each stale result why it is.

    Args:
        place: Where to look.
        table: All results, in order.
        known: What they were made from.

    Returns:
        By name the inputs that moved, in the order of the table.
    """
    found: dict[str, list[str]] = {}
    outdated: set[str] = set()
    for recorded in table:
        reasons = place.moved(recorded, known) or [f"{name} is stale" for name in recorded.reads if name in outdated]
        if reasons:
            found[recorded.name] = reasons
            outdated |= set(recorded.files)
    return found


def read_inputs(path: Path, table: Sequence[Recorded]) -> Inputs:
    """Reads what is known; without a file, nothing is.

    Raises:
        QuantenvError: If the file is damaged.
    """
    if not path.is_file():
        return Inputs([recorded.name for recorded in table], {}, {})
    return read_json(path, Inputs, what="record of results' inputs")


def write_inputs(path: Path, known: Inputs) -> None:
    """Writes what is known, atomically."""
    write_text(path, json.dumps(msgspec.to_builtins(known), indent=1) + "\n")


def with_making(known: Inputs, recorded: Recorded, making: Making, files: Mapping[str, str]) -> Inputs:
    """Adds how a result was made, and the hashes of its files."""
    return Inputs(
        [name for name in known.unrecorded if name != recorded.name],
        {**known.made, recorded.name: making},
        {**known.files, **files},
    )


def file_hash(path: Path) -> str | None:
    """Hashes the bytes of a file; None if there is none."""
    if not path.is_file():
        return None
    about = path.stat()
    return _bytes_hash(path, about.st_mtime_ns, about.st_size)


@functools.cache
def _bytes_hash(path: Path, stamp: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def numbers_hash(path: Path) -> str | None:
    """Hashes what of a file results depend on: not how or when it was made.

    Args:
        path: An evaluation table, of which rows and layers count; a safetensors file, of which the tensors do; or any
            other file.

    Returns:
        The hash; None if there is no such file.
    """
    if not path.is_file():
        return None
    if path.suffix == ".npz":
        with open_npz(path, "evaluation table") as archive:
            arrays = {name: archive.array(name, 1 << 28, "biuf") for name in archive.names if name != METADATA}
            about = parse_json(archive.array(METADATA, JSON_LIMIT, "u").tobytes(), str(path))
        assert isinstance(about, dict)
        told = {key: value for key, value in about.items() if key not in _OF_THE_MAKING}
        parts: list[bytes | str] = [json.dumps(told, sort_keys=True)]
        for name, array in sorted(arrays.items()):
            parts += [name, array.dtype.str, np.ascontiguousarray(array).tobytes()]
        return content_hash(parts)
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        header = parse_json(content[8 : 8 + length], str(path))
        assert isinstance(header, dict)
        header.pop("__metadata__", None)
        return content_hash([json.dumps(header, sort_keys=True), content[8 + length :]])
    return content_hash([content])
