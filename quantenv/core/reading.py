"""The one way in for text files: JSON, JSON lines and YAML, bounded before they are parsed, then held to a schema.

A schema is a `Schema` (a `msgspec.Struct`) or any type that msgspec converts to. It is strict: no unknown key, no bool
for a number, no 4.9 for a whole number, no "0.5" for 0.5. Whatever is wrong is one sentence that names file and key.
"""

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from quantenv.core.errors import QuantenvError, shown
from quantenv.core.plain_yaml import MAX_DEPTH, MAX_DIGITS, UNPRINTABLE, YamlError, load_plain
from quantenv.core.schema_errors import explain

MIB = 2**20
JSON_LIMIT = 16 * MIB
"""Bytes of a JSON file, unless its reader says otherwise; parsed, it takes some 20 times as many."""
YAML_LIMIT = MIB // 4
"""Bytes of a YAML file; PyYAML reads some 100 KB in a second."""
LINE_LIMIT = MIB
"""Bytes of one line of JSON."""

T = TypeVar("T")

# A text from its quote to its end, or to the file's if it has none; possessive, so that it takes linear time.
_TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|([\[{])|[\]}]', re.DOTALL)
_SUSPICIOUS = re.compile(r"\\u00[01789]|\\u[dD]|\\[bf]|[\x7f-\x9f]")


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base class of the objects that a file may hold; unknown keys are refused.

    A file's format is its schema's tag: ``class X(Schema, frozen=True, tag_field="format", tag="quantenv-x-1")``.
    """


def read_json(
    path: str | Path,
    schema: type[T],
    *,
    what: str = "file",
    limit: int = JSON_LIMIT,
    error: type[QuantenvError] = QuantenvError,
) -> T:
    """Reads a JSON file.

    Args:
        path: The file.
        schema: What it must hold.
        what: What messages call it, such as ``"allocation file"``.
        limit: Bytes that it may have.
        error: Class of the error.

    Returns:
        The content, of type `schema`.

    Raises:
        QuantenvError: If it cannot be read, is larger than `limit`, is not JSON, or does not fit the schema.
    """
    where = f"The {what} {path}"
    return fit(parse_json(read_bytes(path, what=what, limit=limit, error=error), where, error), schema, where, error)


def read_yaml(
    path: str | Path,
    schema: type[T],
    *,
    what: str = "file",
    limit: int = YAML_LIMIT,
    error: type[QuantenvError] = QuantenvError,
) -> T:
    """Reads a YAML file of plain data; see `read_json`, whose arguments and errors are the same."""
    where = f"The {what} {path}"
    return fit(parse_yaml(read_bytes(path, what=what, limit=limit, error=error), where, error), schema, where, error)


def read_json_lines(
    path: str | Path,
    schema: type[T],
    *,
    what: str = "file",
    limit: int = LINE_LIMIT,
    error: type[QuantenvError] = QuantenvError,
) -> Iterator[T]:
    """Reads a file with one JSON value on each line, a line at a time; `limit` is that of a line.

    See `read_json`, whose other arguments and errors are the same; these name the line, too.
    """
    check_readable(path, what=what, error=error)
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(limit + 1):
                number += 1
                where = f"The {what} {path}, line {number},"
                if len(line) > limit:
                    raise error(f"{where} is longer than {limit:,} bytes: it is damaged, or no such file.")
                if not line.endswith(b"\n"):
                    raise error(f"{where} has no end: the file is truncated.")
                yield fit(parse_json(line, where, error), schema, where, error)
    except OSError as problem:
        raise error(f"Cannot read the {what} {path}: {problem.strerror}.") from problem


def read_bytes(
    path: str | Path, *, what: str = "file", limit: int = JSON_LIMIT, error: type[QuantenvError] = QuantenvError
) -> bytes:
    """Reads a regular file of at most `limit` bytes; arguments and errors are those of `read_json`."""
    check_readable(path, what=what, error=error)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as problem:
        raise error(f"Cannot read the {what} {path}: {problem.strerror}.") from problem
    if len(content) > limit:
        raise error(f"The {what} {path} is larger than {limit:,} bytes: it is damaged, or no such file.")
    return content


def check_readable(path: str | Path, *, what: str = "file", error: type[QuantenvError] = QuantenvError) -> None:
    """Raises QuantenvError unless `path` is a regular file: a pipe could be read for ever, as could a device."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as problem:
        raise error(f"Cannot read the {what} {str(path)[:300]}: {problem.strerror}.") from problem
    except ValueError as problem:  # a NUL in the path
        raise error(f"Cannot read the {what} {str(path)!r}: no path holds such a character.") from problem
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise error(f"Cannot read the {what} {path}: it is {found}; expected a file.")


def parse_json(data: bytes | str, where: str, error: type[QuantenvError] = QuantenvError) -> Any:
    """Parses JSON into plain data.

    Args:
        data: The JSON.
        where: What messages begin with, such as ``"The file x.json"``.
        error: Class of the error.

    Raises:
        QuantenvError: If it is no UTF-8 or no JSON, nests too deeply, holds a key twice in one object, NaN, Infinity, a
            number out of range, or a control character.
    """
    text = _text(data, where, error)
    depth = deepest = 0
    if text.count("[") + text.count("{") > MAX_DEPTH:
        for token in _TOKENS.finditer(text):
            if token[0][0] != '"':
                depth += 1 if token[1] else -1
                deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise error(f"{where} has lists and objects in each other, more than {MAX_DEPTH} deep; no such file does.")
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
        )
    except json.JSONDecodeError as problem:
        raise error(
            f"{where} is not JSON, or is truncated: {problem.msg} at line {problem.lineno}, column {problem.colno}."
        ) from problem
    except QuantenvError as problem:
        raise error(f"{where} {problem}") from problem
    if _SUSPICIOUS.search(text) and _unprintable(content):
        raise error(f"{where} holds a control character or half a character in a text.")
    return content


def parse_yaml(data: bytes | str, where: str, error: type[QuantenvError] = QuantenvError) -> Any:
    """Parses YAML into plain data; an empty text is None. See `load_plain` for what is refused.

    Args:
        data: The YAML.
        where: What messages begin with, such as ``"The file x.yaml"``.
        error: Class of the error.

    Raises:
        QuantenvError: If it is no UTF-8, or not plain YAML.
    """
    try:
        return load_plain(_text(data, where, error))
    except YamlError as problem:
        raise error(f"{where} is not plain YAML: {problem}.") from problem


def fit(content: Any, schema: type[T], where: str, error: type[QuantenvError] = QuantenvError) -> T:
    """Holds plain data to a schema.

    Args:
        content: What was parsed.
        schema: What it must be.
        where: What messages begin with.
        error: Class of the error.

    Returns:
        The content as `schema`.

    Raises:
        QuantenvError: If it does not fit; the sentence names the key.
    """
    config = getattr(schema, "__struct_config__", None)
    if config is not None and config.tag is not None and isinstance(content, dict) and config.tag_field not in content:
        raise error(f"{where} lacks the key {config.tag_field!r}; expected {config.tag!r}.")  # msgspec would not mind
    try:
        return msgspec.convert(content, schema, strict=True)
    except msgspec.ValidationError as problem:
        raise error(f"{where} {explain(problem, content, schema)}.") from problem


def _text(data: bytes | str, where: str, error: type[QuantenvError]) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8 text (byte {problem.start}).") from problem


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise QuantenvError(f"has the key {shown(repeated)} twice in one object.")
    return content


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise QuantenvError(f"has a whole number of {len(digits)} digits; expected at most {MAX_DIGITS}.")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise QuantenvError(f"holds the number {shown(text)}, which is out of range.")
    return number


def _constant(text: str) -> NoReturn:
    raise QuantenvError(f"holds {text}, which is no number of JSON; expected finite numbers.")


def _unprintable(content: Any) -> bool:
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if UNPRINTABLE.search(item):
                return True
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
    return False
