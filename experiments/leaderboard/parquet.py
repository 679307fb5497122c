"""Evaluations as Parquet, each file with its SHA-256 beside it: `x.parquet.sha256`, which `sha256sum -c` reads, too.

A file is compared with its checksum before Arrow parses a byte of it. The checksum is written last: a file that a crash
left without one counts as damaged.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_atomically, write_text
from quantenv.core.reading import check_readable, parse_json, read_bytes

#: Columns of `evaluations.parquet` and the parts, with their Arrow types. Accuracies and regrets are shares, 0-1.
COLUMNS = {
    "task": "string",
    "metric": "string",
    "budget": "float64",  # ratio of the 8-bit cost
    "agent": "string",
    "seed": "int32",
    "evaluation": "int32",  # from 1
    "bits": "string",  # weight bits of the layers, a digit each, "/", activation bits
    "correct": "int32",
    "samples": "int32",
    "loss": "float64",  # mean cross-entropy, nats
    "cost": "float64",  # SI units of the metric
    "feasible": "bool_",
    "reward": "float64",
    "regret": "float64",  # best feasible accuracy less this one; inf if infeasible, nan where it is not known
    "sampling_error": "float64",  # binomial standard error of the best feasible accuracy; nan where it is not known
}
#: Rows after which a file begins a new group.
ROW_GROUP = 200_000
#: Bytes that a file may have: a hundred million evaluations have some two thousand million.
LIMIT = 1 << 32
_DESCRIPTION = b"quantenv"


class DamagedFile(QuantenvError):
    """A Parquet file that is missing, or not what was written."""


def checksum_of(path: Path) -> Path:
    """Returns where a file's checksum lies."""
    return path.with_name(f"{path.name}.sha256")


def write_checksum(path: Path) -> None:
    """Writes the checksum of a file beside it, as `sha256sum` prints it."""
    write_text(checksum_of(path), _line(path, path.read_bytes()))


def write_table(path: Path, columns: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes evaluations and a description of them, then the checksum.

    Args:
        path: The file.
        columns: Values by column of `COLUMNS`.
        description: JSON.
    """
    arrow, parquet = _pyarrow()
    table = arrow.table(columns, schema=_schema()).replace_schema_metadata({_DESCRIPTION: json.dumps(description)})
    _write(path, lambda file: parquet.write_table(table, file, compression="zstd"))


def write_tables(path: Path, tables: Iterable[Any]) -> None:
    """Writes the rows of Arrow tables of `COLUMNS` one after another, holding few of them, then the checksum."""
    arrow, parquet = _pyarrow()

    def write(file: Any) -> None:
        waiting: list[Any] = []
        with parquet.ParquetWriter(file, _schema(), compression="zstd") as writer:
            for table in tables:
                waiting.append(table.replace_schema_metadata(None))
                if sum(part.num_rows for part in waiting) >= ROW_GROUP:
                    writer.write_table(arrow.concat_tables(waiting))
                    waiting.clear()
            if waiting:
                writer.write_table(arrow.concat_tables(waiting))

    _write(path, write)


def read_table(path: Path, columns: Iterable[str] = tuple(COLUMNS)) -> Any:
    """Reads columns of evaluations as an Arrow table without nulls.

    Raises:
        DamagedFile: If the file is missing or damaged, or holds no evaluations.
    """
    arrow, parquet = _pyarrow()
    wanted = list(columns)
    content = _checked(path)
    try:
        table = parquet.read_table(arrow.BufferReader(content), columns=wanted)
        table.validate(full=True)
        sound = all(table.schema.field(name).type == _schema().field(name).type for name in wanted)
        sound = sound and not any(table[name].null_count for name in wanted)
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is not a sound Parquet file of evaluations.") from error
    if not sound:
        raise DamagedFile(f"{path} holds other columns than evaluations have, or gaps in them.")
    return table


def read_description(path: Path) -> Any:
    """Reads the description that `write_table` was given.

    Raises:
        DamagedFile: If the file is missing or damaged, or has none.
    """
    arrow, parquet = _pyarrow()
    content = _checked(path)
    try:
        text = (parquet.read_schema(arrow.BufferReader(content)).metadata or {})[_DESCRIPTION]
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is not a sound Parquet file of a search.") from error
    return parse_json(text, f"The description in {path}", DamagedFile)


def require_pyarrow() -> None:
    """Raises QuantenvError if pyarrow, which writes Parquet, is not installed."""
    _pyarrow()


def _write(path: Path, write: Callable[[Any], object]) -> None:
    write_atomically(path, write)
    write_checksum(path)


def _checked(path: Path) -> bytes:
    """Reads a file that is as it was written."""
    check_readable(path, what="Parquet file", error=DamagedFile)
    if (size := path.stat().st_size) > LIMIT:
        raise DamagedFile(f"{path} has {size:,} bytes, more than {LIMIT:,}: it is no file of evaluations.")
    content = path.read_bytes()
    beside = checksum_of(path)
    if not beside.exists():
        raise DamagedFile(f"{path} has no checksum beside it ({beside.name}): it is unfinished, or of an old version.")
    if read_bytes(beside, what="checksum", limit=1000, error=DamagedFile) != _line(path, content).encode():
        raise DamagedFile(f"{path} does not match its checksum in {beside.name}: one of them was changed or damaged.")
    return content


def _line(path: Path, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"


def _pyarrow() -> tuple[Any, Any]:
    """Imports pyarrow, which only benchmarks need."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise QuantenvError(
            f"A benchmark's evaluations are kept as Parquet, which needs pyarrow ({error}): "
            "pip install 'quantenv[benchmark]'"
        ) from error


def _schema() -> Any:
    arrow, _ = _pyarrow()
    return arrow.schema([(name, getattr(arrow, kind)()) for name, kind in COLUMNS.items()])
