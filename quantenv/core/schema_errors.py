"""What does not fit a schema, in a reader's words: msgspec's errors with the key, the value and what was expected."""

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from quantenv.core.errors import shown
from quantenv.core.typed import short

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "names with values",
    "null": "null",
}
_MESSAGE = re.compile(r"(?P<problem>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def explain(error: msgspec.ValidationError, content: Any, schema: Any) -> str:
    """Says what is wrong, as the rest of a sentence whose subject is the file.

    Args:
        error: What msgspec says.
        content: What was converted.
        schema: What it was to be converted to.

    Returns:
        Such as ``does not fit: layers[3].weight_bits is 4.5; expected a whole number``.
    """
    message = _MESSAGE.fullmatch(str(error))
    assert message is not None  # the pattern matches every text
    problem, keys = message["problem"], _keys(message["path"] or "", content, schema, str(error))
    place, value, kind = _place(keys), content, msgspec.inspect.type_info(schema)
    for key in keys:
        kind, value = _below(kind, key), value[key]
    subject = place or "its content"
    fields = {field.encode_name: field for part in _parts(kind) for field in getattr(part, "fields", ())}
    if message["key"]:
        return f"does not fit: a key of {subject} is wrong; {_plain(problem)}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", problem):
        return f"lacks the key {_place([*keys, missing[1]])!r}"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.6)
        hint = f"perhaps {near[0]!r} is meant" if near else f"expected {', '.join(fields) or 'none'}"
        return f"has the unknown key {shown(_place([*keys, unknown[1]]))}; {hint}"
    if problem.startswith(("Invalid enum value", "Invalid value")):
        known = [repr(each) for part in _parts(kind) for each in getattr(part, "values", ())]
        return f"does not fit: {subject} is {short(value)}; expected {' or '.join(known) or 'a known value'}"
    if length := re.fullmatch(r"Expected `(\w+)` of length (.*)", problem):
        found = f"has {len(value)} {'characters' if isinstance(value, str) else 'entries'}"
        expected = re.sub(", got .*", "", length[2]).replace(">= ", "at least ").replace("<= ", "at most ")
        return f"does not fit: {subject} {found}; expected {expected}"
    return f"does not fit: {subject} is {short(value)}; {_plain(problem)}"


def _keys(path: str, content: Any, schema: Any, message: str) -> list[Any]:
    """Returns the keys and indices of a path; msgspec does not say which entry of a mapping it means, this does."""
    keys: list[Any] = []
    value = content
    for step in _STEP.finditer(path):
        if step["name"]:
            key: Any = step["name"]
        elif step["index"]:
            key = int(step["index"])
        else:
            key = _first_failing(value, partial(_fails_with, content, tuple(keys), schema, message))
            if key is None:
                return keys
        if not _leads_on(value, key):  # a key or a text of the file that looks like a path
            return keys
        keys.append(key)
        value = value[key]
    return keys


def _leads_on(value: Any, key: Any) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


def _first_failing(mapping: Any, fails: Callable[[dict[Any, Any]], bool]) -> Any:
    """Returns the key of the first entry that fails, found by halving; None if none fails by itself."""
    entries = list(mapping.items()) if isinstance(mapping, dict) else []
    low, high = 0, len(entries)  # the first `low` entries pass, the first `high` fail
    if not fails(dict(entries)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(dict(entries[:middle])) else (middle, high)
    return entries[high - 1][0] if entries else None


def _fails_with(content: Any, keys: Sequence[Any], schema: Any, message: str, value: Any) -> bool:
    """Whether content with another value at a path fails with the same message."""
    try:
        msgspec.convert(_with(content, keys, value), schema, strict=True)
    except msgspec.ValidationError as error:
        return str(error) == message
    return False


def _with(content: Any, keys: Sequence[Any], value: Any) -> Any:
    """Returns content with another value at a path."""
    if not keys:
        return value
    changed = content.copy()
    changed[keys[0]] = _with(content[keys[0]], keys[1:], value)
    return changed


def _parts(kind: Any) -> Sequence[Any]:
    """Returns the alternatives of a type, itself if it has none."""
    kind = getattr(kind, "type", kind) if isinstance(kind, msgspec.inspect.Metadata) else kind
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def _below(kind: Any, key: Any) -> Any:
    """Returns the type of what a key or index of a type leads to; None where it has none."""
    tags = [part.tag for part in _parts(kind) if getattr(part, "tag_field", None) == key]
    if tags:
        return msgspec.inspect.LiteralType(tuple(tags))
    for part in _parts(kind):
        for field in getattr(part, "fields", ()):
            if field.encode_name == key:
                return field.type
        if isinstance(key, int) and key < len(items := getattr(part, "item_types", ())):
            return items[key]
        for below in ("item_type", "value_type"):
            if hasattr(part, below):
                return getattr(part, below)
    return None


def _place(keys: Sequence[Any]) -> str:
    """Returns a path as messages show it: ``layers[3].weight_bits``."""
    place = ""
    for key in keys:
        if isinstance(key, str) and key.isidentifier():
            place += f".{key}" if place else key
        else:
            place += f"[{shown(key)}]"
    return place


def _plain(problem: str) -> str:
    """Turns ``Expected `int | null`, got `str` `` into ``expected a whole number or null``."""
    problem = re.sub(r", got `.*`$", "", problem)
    problem = re.sub(
        r"`([\w |]+)`", lambda kinds: " or ".join(_WORDS.get(kind, kind) for kind in kinds[1].split(" | ")), problem
    )
    problem = re.sub(r" (>=|<=|>|<) ", lambda sign: f" {_SIGNS[sign[1]]} ", problem)
    return problem[:1].lower() + problem[1:]


_SIGNS = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}
