"""`quantenv store info | export | merge | prune`: the evaluations that were kept, and what to do with them."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rich.table import Table

from experiments.options.console import results
from experiments.options.parsing import parse_options
from quantenv.core.allocation import Bits
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import write_atomically
from quantenv.core.reading import LINE_LIMIT, Schema, check_readable, fit
from quantenv.core.records import chained, open_line
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store.store import EvaluationStore, Record, open_store
from quantenv.hardware.quantities import format_quantity

FORMAT = "quantenv-evaluations-2"
SQLITE_HEADER = b"SQLite format 3\0"
DAY = 24 * 60 * 60
LATEST = 253_402_300_799.0
"""The end of the year 9999, in seconds since 1970."""


@dataclass(frozen=True)
class InfoOptions:
    """Says where the store is, how large it is and what it holds."""

    store: str | None = None
    """Path of an SQLite file or SQLAlchemy URL; by default $QUANTENV_STORE, or the user's own file."""


@dataclass(frozen=True)
class ExportOptions:
    """Writes evaluations as JSON lines, which `quantenv store merge` reads."""

    file: str
    """File to write."""
    identity: str | None = None
    """Only the evaluations of this evaluator; `quantenv store info` lists them."""
    store: str | None = None
    """Path of an SQLite file or SQLAlchemy URL; by default $QUANTENV_STORE, or the user's own file."""


@dataclass(frozen=True)
class MergeOptions:
    """Adds the evaluations of another store or of an exported file.

    Nothing is added if one of them contradicts what the store holds.
    """

    source: str
    """File written by `quantenv store export`, path of an SQLite store, or SQLAlchemy URL."""
    store: str | None = None
    """Path of an SQLite file or SQLAlchemy URL; by default $QUANTENV_STORE, or the user's own file."""


@dataclass(frozen=True)
class PruneOptions:
    """Deletes evaluations for good: those of one evaluator, old ones, or old ones of one evaluator."""

    identity: str | None = None
    """Only the evaluations of this evaluator; `quantenv store info` lists them."""
    older_than_days: float | None = None
    """Only evaluations that were stored longer ago than this."""
    yes: bool = False
    """Really delete; without it, the command only says how many it would."""
    store: str | None = None
    """Path of an SQLite file or SQLAlchemy URL; by default $QUANTENV_STORE, or the user's own file."""

    def __post_init__(self) -> None:
        if self.identity is None and self.older_than_days is None:
            raise QuantenvError("Nothing is said of what to prune: give --identity, --older_than_days or both.")
        if self.older_than_days is not None and not self.older_than_days >= 0:
            raise QuantenvError(f"--older_than_days is {self.older_than_days}; expected a number of at least 0.")


def main(arguments: Sequence[str]) -> int:
    """Runs one action on the store.

    Args:
        arguments: The command line after ``store``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, or a store or file that cannot be read.
    """
    actions = {"info": info, "export": export, "merge": merge, "prune": prune}
    name, *rest = list(arguments) or ["--help"]
    if name in actions:
        return actions[name](rest)
    if name not in ("-h", "--help"):
        raise unknown_name("action of `quantenv store`:", name, actions)
    argparse.ArgumentParser(
        prog="quantenv store",
        usage="quantenv store info | export FILE | merge SOURCE | prune [options]",
        description="Evaluations are kept in a store, so that what was evaluated once is never evaluated again.",
        epilog="`quantenv store <action> --help` explains every option of an action.",
    ).print_help(sys.stdout)
    return 0


def info(arguments: Sequence[str]) -> int:
    """Prints where the store is, its size and its rows for each evaluator and split."""
    store = _open(parse_options(InfoOptions, "store info", arguments).store)
    summaries = store.summaries()
    size = store.bytes_used()
    say = results()
    on_disk = "" if size is None else f", {format_quantity('size', size)}"
    say.print(f"{store.name}: {sum(s.rows for s in summaries):,} evaluations{on_disk}", markup=False, soft_wrap=True)
    if summaries:
        table = Table("task", "identity", "split", "evaluations", "oldest", "newest")
        for summary in summaries:
            times = (_date(summary.oldest), _date(summary.newest))
            table.add_row(summary.task, summary.identity, summary.split, f"{summary.rows:,}", *times)
        say.print(table, markup=False)
    return 0


def export(arguments: Sequence[str]) -> int:
    """Writes a header, a line for each evaluation and their number; the file appears when it is complete."""
    options = parse_options(ExportOptions, "store export", arguments)
    store = _open(options.store)
    written = -2  # the header and the last line

    def write(file: Any) -> None:
        nonlocal written
        for line in chained(_lines(store, options.identity)):
            file.write(line)
            written += 1

    try:
        write_atomically(Path(options.file), write)
    except OSError as error:
        raise QuantenvError(f"Cannot write {options.file}: {error.strerror}.") from error
    results().print(f"Wrote {written:,} evaluations to {options.file}.", markup=False, soft_wrap=True)
    return 0


def merge(arguments: Sequence[str]) -> int:
    """Adds the evaluations of a source, after all of them were compared with the store's."""
    options = parse_options(MergeOptions, "store merge", arguments)
    store = _open(options.store)
    total = sum(1 for _ in _records_of(options.source))
    known = store.agreeing(_records_of(options.source))
    store.add_all(_records_of(options.source))
    results().print(
        f"Merged {options.source} into {store.name}: {total - known:,} new evaluations, {known:,} were there already.",
        markup=False,
        soft_wrap=True,
    )
    return 0


def prune(arguments: Sequence[str]) -> int:
    """Deletes evaluations."""
    options = parse_options(PruneOptions, "store prune", arguments)
    store = _open(options.store)
    before = None if options.older_than_days is None else time.time() - options.older_than_days * DAY
    if not options.yes:
        count, total = store.count(options.identity, before), store.count()
        raise QuantenvError(
            f"This would delete {count:,} of {total:,} evaluations of {store.name}: say --yes to do it."
        )
    deleted = store.prune(options.identity, before)
    results().print(f"Deleted {deleted:,} evaluations of {store.name}.", markup=False, soft_wrap=True)
    return 0


def _open(location: str | None) -> EvaluationStore:
    store = open_store(location)
    if store is None:
        raise QuantenvError("The store is off (--store or QUANTENV_STORE): name a path or a URL with --store.")
    return store


def _records_of(source: str) -> Iterator[Record]:
    """Reads a store or an exported file, a few evaluations at a time.

    Raises:
        QuantenvError: If there is none, or it is malformed or damaged.
    """
    if "://" in source:
        yield from EvaluationStore(source, replace_damaged=False).records()
        return
    path = Path(source)
    check_readable(path, what="store or exported file")
    try:
        with path.open("rb") as file:
            is_store = file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    except OSError as error:
        raise QuantenvError(f"Cannot read {source}: {error.strerror}; expected a store or an exported file.") from error
    if is_store:
        yield from EvaluationStore(source, replace_damaged=False).records()
    else:
        yield from _read_lines(path)


def _read_lines(path: Path) -> Iterator[Record]:
    """Reads an exported file: a header, evaluations, and a line that says how many there are."""
    check_readable(path)
    before, count, ended = "", 0, False
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{path}, line {number},"
            try:
                if ended or len(line) > LINE_LIMIT:
                    raise QuantenvError(f"{where} is too long, or follows the last one.")
                content, before = open_line(line, where, before)
                if number == 1:
                    fit(content, _Header, where)
                elif "evaluations" in content:
                    ended = fit(content, _End, where).evaluations == count
                    if not ended:
                        raise QuantenvError(f"{where} says {content['evaluations']} evaluations of {count}.")
                else:
                    yield _record(content, where)
                    count += 1
            except QuantenvError as error:
                raise QuantenvError(
                    f"{str(error).rstrip('.')}; expected a store, or a file as `quantenv store export` wrote it."
                ) from error
    if not ended:
        found = "is truncated" if number else "is empty"
        raise QuantenvError(
            f"{path} {found}; expected a store, or a file as `quantenv store export` wrote it, in full."
        )


class _Header(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """The first line of an exported file."""


class _End(Schema, frozen=True):
    """The last line of an exported file."""

    evaluations: Annotated[int, msgspec.Meta(ge=0)]


class _Line(Schema, frozen=True):
    """An evaluation in an exported file."""

    identity: str
    split: str
    bits: Annotated[tuple[tuple[Bits, Bits], ...], msgspec.Meta(min_length=1)]
    task: str
    created: Annotated[float, msgspec.Meta(ge=0, le=LATEST)]
    correct: Annotated[int, msgspec.Meta(ge=0)]
    samples: Annotated[int, msgspec.Meta(ge=1)]
    loss: Annotated[float, msgspec.Meta(ge=0)] | None
    """Null where it is no number."""


def _lines(store: EvaluationStore, identity: str | None) -> Iterator[dict[str, Any]]:
    """Yields the contents of an exported file's lines."""
    yield {"format": FORMAT}
    count = 0
    for record in store.records(identity):
        content = asdict(record)
        evaluation = content.pop("evaluation")
        yield {**content, **evaluation, "loss": evaluation["loss"] if math.isfinite(evaluation["loss"]) else None}
        count += 1
    yield {"evaluations": count}


def _record(content: dict[str, Any], where: str) -> Record:
    line = fit(content, _Line, where)
    if line.correct > line.samples:
        raise QuantenvError(f"{where} has {line.correct} correct of {line.samples} samples.")
    evaluation = Evaluation(line.correct, line.samples, math.nan if line.loss is None else line.loss)
    return Record(line.identity, line.split, line.bits, evaluation, line.task, line.created)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
