"""The store: what was evaluated once, by any agent, seed or run, and need never be evaluated again."""

import hashlib
import importlib
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from quantenv.core.errors import QuantenvError, shown
from quantenv.core.files import STORE_OFF, STORE_VARIABLE, data_dir
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store.database import Damaged, Database, parse_location

#: The location that means no store.
OFF = STORE_OFF
#: Rows that are looked up, checked or written by one statement.
CHUNK = 500

#: Weight and activation bits of each layer, in order.
Bits = tuple[tuple[int, int], ...]
Item = TypeVar("Item")

#: Characters; those of the key's columns fit into the keys of every common server.
_LENGTHS = {"identity": 40, "split": 20, "bits_key": 64, "task": 200}
#: Dialects whose insert passes over rows that are there; imported when used, as half of SQLAlchemy's time is theirs.
_UPSERTS = ("sqlite", "postgresql")
_METADATA = sa.MetaData()
#: The first version, ``quantenv_evaluations``, had the bits themselves for a key, of 350 layers at most.
_TABLE = sa.Table(
    "quantenv_evaluations_2",
    _METADATA,
    sa.Column("identity", sa.String(_LENGTHS["identity"]), primary_key=True),
    sa.Column("split", sa.String(_LENGTHS["split"]), primary_key=True),
    sa.Column("bits_key", sa.String(_LENGTHS["bits_key"]), primary_key=True),  # see `_key`
    sa.Column("bits", sa.Text, nullable=False),  # two digits a layer
    sa.Column("task", sa.String(_LENGTHS["task"]), nullable=False),
    sa.Column("correct", sa.Integer, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("loss", sa.Double),  # NULL is NaN, which SQLite cannot hold
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
_KEY = (_TABLE.c.identity, _TABLE.c.split, _TABLE.c.bits_key)
_OF_SPLIT = (_TABLE.c.identity == sa.bindparam("of_identity")) & (_TABLE.c.split == sa.bindparam("of_split"))
_FIND_ONE = sa.select(_TABLE).where(_OF_SPLIT, _TABLE.c.bits_key == sa.bindparam("of_key"))
_FIND_SOME = sa.select(_TABLE).where(_OF_SPLIT, _TABLE.c.bits_key.in_(sa.bindparam("of_key", expanding=True)))


class StoreConflictError(QuantenvError):
    """One key has two values, so an evaluator's identity does not cover all that its numbers depend on."""


@dataclass(frozen=True)
class Record:
    """One stored evaluation."""

    identity: str
    """The evaluator's identity."""
    split: str
    """Split that was evaluated."""
    bits: Bits
    """Weight and activation bits of each layer."""
    evaluation: Evaluation
    """The result."""
    task: str = ""
    """Name of the task (informative)."""
    created: float = 0.0
    """When it was stored, seconds since 1970 (informative)."""


@dataclass(frozen=True)
class Summary:
    """What a store holds for one evaluator on one split."""

    identity: str
    task: str
    split: str
    rows: int
    oldest: float
    """Seconds since 1970."""
    newest: float
    """Seconds since 1970."""


def open_store(location: str | os.PathLike | None = None) -> "EvaluationStore | None":
    """Opens the store that an option or the user's settings name.

    Args:
        location: An SQLAlchemy URL, a path, or ``off``; by default that of ``$QUANTENV_STORE``, or
            ``evaluations.sqlite`` in the user's data directory.

    Returns:
        The store; None if it is off.

    Raises:
        QuantenvError: If it cannot be opened.
    """
    if location is not None and not isinstance(location, str | os.PathLike):
        raise QuantenvError(
            f"The store is {shown(location)}: expected an SQLAlchemy URL, the path of an SQLite file, or 'off'."
        )
    location = str(location or os.environ.get(STORE_VARIABLE) or default_path())
    return None if location == OFF else EvaluationStore(location)


def default_path() -> Path:
    """Returns the path of the user's store where nothing else is said."""
    return data_dir() / "evaluations.sqlite"


class EvaluationStore:
    """Evaluations by identity, split and bits, in any database that SQLAlchemy speaks to.

    Several processes may read and write at once. Every row carries a checksum, so that damage that leaves the
    database's own structure whole is found when the row is read. Pickled by location; usable after a fork.

    Args:
        location: An SQLAlchemy URL, or the path of an SQLite file, which is made if missing.
        replace_damaged: Whether a damaged SQLite file is moved aside and a new one begun; otherwise it is an error.

    Raises:
        QuantenvError: If the store cannot be opened.
    """

    def __init__(self, location: str, replace_damaged: bool = True) -> None:
        self._database = Database(parse_location(location), _METADATA, replace_damaged)
        self._replace_damaged = replace_damaged
        name = self._database.dialect
        dialect = importlib.import_module(f"sqlalchemy.dialects.{name}") if name in _UPSERTS else None
        self._insert = dialect.insert(_TABLE).on_conflict_do_nothing() if dialect else None

    def __reduce__(self) -> tuple[Any, ...]:
        location = self._database.url.render_as_string(hide_password=False)
        return EvaluationStore, (location, self._replace_damaged)

    @property
    def name(self) -> str:
        """Path or URL, without its password."""
        return self._database.name

    def find(self, identity: str, split: str, bits: Sequence[Bits]) -> dict[Bits, Evaluation]:
        """Looks evaluations up.

        Args:
            identity: The evaluator's identity.
            split: Split.
            bits: Any number of allocations' bits.

        Returns:
            The evaluations that the store holds, by bits.
        """
        found = {}
        for chunk in _chunks(bits, CHUNK):
            found.update(self._database.run(partial(_find, identity, split, chunk)))
        return found

    def add(self, record: Record) -> None:
        """Stores one evaluation, durably when this returns; `created` is now if it is 0.

        Raises:
            StoreConflictError: If the store holds another value for it.
            QuantenvError: If its identity, split or task is too long.
        """
        self.add_all([record])

    def add_all(self, records: Iterable[Record]) -> None:
        """Stores evaluations; those that are there already stay as they are.

        Raises:
            StoreConflictError: If the store holds another value for one of them; those before it may be stored.
            QuantenvError: If an identity, split or task is too long.
        """
        for chunk in _chunks(records, CHUNK):
            self._database.run(partial(self._write, chunk, [_row(record) for record in chunk]))

    def agreeing(self, records: Iterable[Record]) -> int:
        """Counts the records that are stored, with the same value.

        Raises:
            StoreConflictError: If one is stored with another value.
        """
        return sum(self._database.run(partial(self._agreeing, chunk)) for chunk in _chunks(records, CHUNK))

    def records(self, identity: str | None = None) -> Iterator[Record]:
        """Goes through the stored evaluations in the order of their keys, holding few at a time.

        Args:
            identity: Only those of this evaluator.
        """
        last: tuple[str, str, str] | None = None
        while True:
            query = sa.select(_TABLE).order_by(*_KEY).limit(CHUNK)
            if identity is not None:
                query = query.where(_TABLE.c.identity == identity)
            if last is not None:
                query = query.where(sa.tuple_(*_KEY) > sa.tuple_(*map(sa.literal, last)))
            rows = self._database.run(partial(_read, query, {}))
            yield from rows
            if len(rows) < CHUNK:
                return
            last = rows[-1].identity, rows[-1].split, _key(_encode(rows[-1].bits))

    def summaries(self) -> list[Summary]:
        """Counts the rows of every evaluator and split."""
        c = _TABLE.c
        query = (
            sa.select(c.identity, c.task, c.split, sa.func.count(), sa.func.min(c.created), sa.func.max(c.created))
            .group_by(c.identity, c.task, c.split)
            .order_by(c.task, c.identity, c.split)
        )

        def summarise(connection: sa.Connection) -> list[Summary]:
            return [Summary(*row) for row in connection.execute(query)]

        return self._database.run(summarise)

    def bytes_used(self) -> int | None:
        """Returns the store's size on disk; None for a server that is not asked."""
        path = self._database.path
        if path is not None:
            parts = [path.with_name(path.name + suffix) for suffix in ("", "-wal")]
            return sum(part.stat().st_size for part in parts if part.exists())
        if self._database.dialect == "postgresql":
            query = sa.text("SELECT pg_total_relation_size(:name)").bindparams(name=_TABLE.name)
            return self._database.run(lambda connection: int(connection.execute(query).scalar_one()))
        return None

    def count(self, identity: str | None = None, before: float | None = None) -> int:
        """Counts evaluations.

        Args:
            identity: Only those of this evaluator.
            before: Only those stored before this time, seconds since 1970.
        """
        query = sa.select(sa.func.count()).select_from(_TABLE).where(_selection(identity, before))
        return self._database.run(lambda connection: int(connection.execute(query).scalar_one()))

    def prune(self, identity: str | None = None, before: float | None = None) -> int:
        """Deletes evaluations and gives their space back; see `count` for what is selected.

        Returns:
            How many were deleted.
        """
        statement = sa.delete(_TABLE).where(_selection(identity, before))
        deleted = self._database.run(lambda connection: connection.execute(statement).rowcount)
        if self._database.dialect == "sqlite":
            self._database.run_outside_transactions("VACUUM")
        return deleted

    def close(self) -> None:
        """Closes the connections; the next access opens new ones."""
        self._database.close()

    def _write(self, records: list[Record], rows: list[dict[str, Any]], connection: sa.Connection) -> None:
        """Inserts the rows of at most `CHUNK` records that are not there yet.

        Raises:
            StoreConflictError: If one is there with another value.
            Damaged: If afterwards one is not there.
        """
        if self._insert is not None:
            inserted = connection.execute(self._insert, rows if len(rows) > 1 else rows[0]).rowcount
        else:
            inserted = _insert_one_by_one(rows, connection)
        # Servers need not say how many they inserted.
        if inserted != len(rows) and self._agreeing(records, connection) != len(rows):
            raise Damaged("it neither takes nor finds some evaluations")

    def _agreeing(self, records: list[Record], connection: sa.Connection) -> int:
        """Does what `agreeing` does for at most `CHUNK` records."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            groups.setdefault((record.identity, record.split), []).append(record)
        agreeing = 0
        for (identity, split), group in groups.items():
            found = _find(identity, split, [record.bits for record in group], connection)
            for record in group:
                known = found.get(record.bits)
                if known is not None and _values(known) != _values(record.evaluation):
                    raise _conflict(self.name, record, known)
                agreeing += known is not None
        return agreeing


def _insert_one_by_one(rows: list[dict[str, Any]], connection: sa.Connection) -> int:
    """Inserts rows that are not there yet, in portable SQL; returns how many."""
    inserted = 0
    for row in rows:
        try:
            with connection.begin_nested():
                connection.execute(sa.insert(_TABLE), row)
            inserted += 1
        except IntegrityError:
            continue  # already there: the caller compares the values
    return inserted


def _find(identity: str, split: str, bits: Sequence[Bits], connection: sa.Connection) -> dict[Bits, Evaluation]:
    """Looks at most `CHUNK` evaluations up."""
    keys = [_key(_encode(item)) for item in bits]
    one = len(keys) == 1
    values = {"of_identity": identity, "of_split": split, "of_key": keys[0] if one else keys}
    rows = connection.execute(_FIND_ONE if one else _FIND_SOME, values)
    return {record.bits: record.evaluation for record in map(_record, rows)}


def _row(record: Record) -> dict[str, Any]:
    bits = _encode(record.bits)
    texts = {"identity": record.identity, "split": record.split, "bits_key": _key(bits), "task": record.task}
    for name, value in texts.items():
        if len(value) > _LENGTHS[name]:
            raise QuantenvError(
                f"The store cannot hold an evaluation of the {name} {shown(value)}: it holds at most {_LENGTHS[name]} "
                f"characters of {name}. Go without a store by naming 'off'."
            )
    correct, samples, loss = _values(record.evaluation)
    created = float(record.created or time.time())
    row = {**texts, "bits": bits, "correct": correct, "samples": samples, "loss": loss, "created": created}
    return {**row, "checksum": _checksum(row)}


def _read(query: sa.Select[Any], parameters: dict[str, Any], connection: sa.Connection) -> list[Record]:
    return [_record(row) for row in connection.execute(query, parameters)]


def _record(row: Any) -> Record:
    """Reads a row.

    Raises:
        Damaged: If it is not what was written.
    """
    columns = row._asdict()
    if _checksum(columns) != row.checksum:
        key = ", ".join(f"{name} {shown(columns[name])}" for name in ("identity", "split", "bits"))
        raise Damaged(f"the row of {key} is not as written")
    loss = math.nan if row.loss is None else row.loss
    evaluation = Evaluation(row.correct, row.samples, loss)
    return Record(row.identity, row.split, _decode(row.bits), evaluation, row.task, row.created)


def _checksum(row: dict[str, Any]) -> int:
    """Returns the CRC-32 of a row's other columns; Python writes equal doubles, and no others, alike."""
    return zlib.crc32(ascii([row[column.name] for column in _TABLE.columns if column.name != "checksum"]).encode())


def _values(evaluation: Evaluation) -> tuple[int, int, float | None]:
    loss = float(evaluation.loss)
    return evaluation.correct, evaluation.samples, None if math.isnan(loss) else loss


def _encode(bits: Bits) -> str:
    """Writes two digits a layer: bits of its weights and of its activations."""
    return "".join(f"{weight}{activation}" for weight, activation in bits)


def _key(code: str) -> str:
    """Returns what stands for bits in keys, however many layers they are of.

    It begins with the bits of the first layers: rows lie in the order of bits, and what is written together together.
    """
    return code[: _LENGTHS["bits_key"] // 2] + hashlib.blake2b(code.encode(), digest_size=16).hexdigest()


def _decode(code: str) -> Bits:
    digits = [int(digit) for digit in code]
    return tuple(zip(digits[::2], digits[1::2], strict=True))


def _selection(identity: str | None, before: float | None) -> sa.ColumnElement[bool]:
    conditions: list[sa.ColumnElement[bool]] = [sa.true()]
    if identity is not None:
        conditions.append(_TABLE.c.identity == identity)
    if before is not None:
        conditions.append(_TABLE.c.created < before)
    return sa.and_(*conditions)


def _conflict(name: str, record: Record, known: Evaluation) -> StoreConflictError:
    return StoreConflictError(
        f"Identity {record.identity!r}, split {record.split!r}, bits {shown(_encode(record.bits))} has two values: "
        f"{known} in the store {name}, and {record.evaluation}. One identity must mean one value: it misses something "
        "that the numbers depend on, or a file was changed. `quantenv store prune --identity` removes the stored ones."
    )


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
