"""`quantenv store info | export | merge | prune`: the evaluations that were kept, and what to do with them."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from experiments.command_line import parse_options
from experiments.console import results
from quantenv.errors import QuantenvError, unknown_name
from quantenv.evaluate.base import Evaluation
from quantenv.evaluate.store import EvaluationStore, Record, open_store
from quantenv.files import write_atomically
from quantenv.hardware.quantities import format_quantity

FORMAT = "quantenv-evaluations-1"
SQLITE_HEADER = b"SQLite format 3\0"
DAY = 24 * 60 * 60

Kind = TypeVar("Kind")


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
    """Writes a header line and one line for each evaluation; the file appears when it is complete."""
    options = parse_options(ExportOptions, "store export", arguments)
    store = _open(options.store)
    written = 0

    def write(file: Any) -> None:
        nonlocal written
        file.write(json.dumps({"format": FORMAT}).encode() + b"\n")
        for record in store.records(options.identity):
            file.write(json.dumps(_to_dict(record)).encode() + b"\n")
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
    if not path.stat().st_size:
        raise QuantenvError(f"{path} is empty; expected a store, or a file written by `quantenv store export`.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
                if number > 1:
                    yield _from_dict(content)
                elif content["format"] != FORMAT:
                    raise ValueError(f"its format is {content['format']!r}")
            except (ValueError, TypeError, KeyError) as error:
                raise QuantenvError(
                    f"{path}, line {number}, is not as `quantenv store export` wrote it ({error!r}); "
                    "expected a store, or an exported file in full."
                ) from error


def _to_dict(record: Record) -> dict[str, Any]:
    """Returns a line's content; Python writes doubles so that they read back the same."""
    content = asdict(record)
    evaluation = content.pop("evaluation")
    return {**content, **evaluation}


def _from_dict(content: dict[str, Any]) -> Record:
    """Reads a line's content.

    Raises:
        ValueError, TypeError, KeyError: If something is missing or of the wrong kind.
    """
    texts = [_typed(content[name], str) for name in ("identity", "split", "task")]
    correct, samples = (_typed(content[name], int) for name in ("correct", "samples"))
    if not 0 <= correct <= samples or not samples:
        raise ValueError(f"{correct} correct of {samples} samples")
    bits = tuple((_typed(weight, int), _typed(activation, int)) for weight, activation in content["bits"])
    if not bits or not all(1 <= bit <= 8 for pair in bits for bit in pair):
        raise ValueError(f"bits {bits}")
    evaluation = Evaluation(correct, samples, float(_typed(content["loss"], (int, float))))
    identity, split, task = texts
    return Record(identity, split, bits, evaluation, task, float(_typed(content["created"], (int, float))))


def _typed(value: Any, kind: type[Kind] | tuple[type[Kind], ...]) -> Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"unexpected {value!r}")
    return value


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
