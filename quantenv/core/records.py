"""Our own text files: each carries a checksum of its content, so that damage never becomes another number.

A checksum finds damage and slips of an editor; it is no signature, and a stranger's file may carry a right one. Readers
hold what they read to a schema all the same.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from quantenv.core.errors import QuantenvError, shown
from quantenv.core.files import write_text
from quantenv.core.reading import JSON_LIMIT, fit, parse_json, read_bytes

KEY = "checksum"
COMMENT = "# checksum: "

T = TypeVar("T")


def checksum(content: Any, before: str = "") -> str:
    """Returns the checksum of plain data: 16 hexadecimal digits of BLAKE2b over its JSON, keys in their order.

    Args:
        content: The data.
        before: Checksum of the record before it, where records form a chain.

    Raises:
        QuantenvError: If a number is not finite.
    """
    try:
        return _digest(before + json.dumps(content, separators=(",", ":"), allow_nan=False))
    except ValueError as problem:
        raise QuantenvError(
            f"What is to be kept holds a number that is not finite: {shown(content, 200)}."
        ) from problem


def sealed(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns content with its checksum as the last entry; `before` as in `checksum`."""
    return {**content, KEY: checksum(content, before)}


def open_record(
    content: Any, schema: type[T], where: str, error: type[QuantenvError] = QuantenvError, before: str = ""
) -> T:
    """Holds the content of a record to its schema and its checksum.

    Args:
        content: Plain data.
        schema: What it must hold besides the checksum.
        where: What messages begin with, such as ``"The file x.json"``.
        error: Class of the error.
        before: As in `checksum`.

    Returns:
        The content, of type `schema`.

    Raises:
        QuantenvError: If it does not fit the schema, or its checksum is missing or wrong.
    """
    if not isinstance(content, dict):
        raise error(f"{where} does not fit: its content is {shown(content)}; expected names with values.")
    rest = {key: value for key, value in content.items() if key != KEY}
    record = fit(rest, schema, where, error)  # first: its sentences say more
    if KEY not in content:
        raise error(f"{where} has no {KEY!r}: quantenv did not write it, or something changed it. Make it anew.")
    if content[KEY] != checksum(rest, before):
        raise error(
            f"{where} does not match its {KEY} ({shown(content[KEY])}): it was changed or damaged. Restore it, or "
            "make it anew."
        )
    return record


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with its checksum, atomically.

    Raises:
        QuantenvError: If a number is not finite.
    """
    write_text(path, json.dumps(sealed(content), indent=1, allow_nan=False) + "\n")


def read_record(
    path: str | Path,
    schema: type[T],
    *,
    what: str = "file",
    limit: int = JSON_LIMIT,
    error: type[QuantenvError] = QuantenvError,
) -> T:
    """Reads what `write_record` wrote.

    Args:
        path: The file.
        schema: What it must hold besides the checksum.
        what: What messages call it.
        limit: Bytes that it may have.
        error: Class of the error.

    Returns:
        The content, of type `schema`.

    Raises:
        QuantenvError: As `quantenv.core.reading.read_json`, or if the checksum is missing or wrong.
    """
    where = f"The {what} {path}"
    content = parse_json(read_bytes(path, what=what, limit=limit, error=error), where, error)
    return open_record(content, schema, where, error)


def chained(contents: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yields objects as lines of JSON whose checksums form a chain: none can be changed, lost, repeated or moved.

    Raises:
        QuantenvError: If a number is not finite.
    """
    before = ""
    for content in contents:
        line = sealed(content, before)
        before = line[KEY]
        yield json.dumps(line).encode() + b"\n"


def open_line(line: bytes, where: str, before: str) -> tuple[dict[str, Any], str]:
    """Opens a line of a chain.

    Args:
        line: The line.
        where: What messages begin with.
        before: Checksum of the line before it, empty for the first.

    Returns:
        Its content, and its checksum.

    Raises:
        QuantenvError: If it is no line of a chain, or not the one that follows.
    """
    raw = parse_json(line, where)
    return open_record(raw, dict[str, Any], where, before=before), raw[KEY]


def with_comment(text: str) -> str:
    """Returns a text of several lines with a comment line at its end that holds its checksum; YAML readers skip it."""
    return f"{text}{COMMENT}{_digest(text)}\n"


def check_comment(data: bytes, where: str, error: type[QuantenvError] = QuantenvError) -> None:
    """Raises QuantenvError unless a text ends in the comment line that `with_comment` put there."""
    text, mark, recorded = data.rpartition(COMMENT.encode())
    if not mark:
        raise error(
            f"{where} has no checksum at its end: it was edited or damaged. Restore it; to change options, give a "
            "copy of it to --config."
        )
    if recorded.rstrip(b"\n") != hashlib.blake2b(text, digest_size=8).hexdigest().encode():
        raise error(
            f"{where} does not match its checksum: it was edited or damaged. Restore it; to change options, give a "
            "copy of it to --config."
        )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
