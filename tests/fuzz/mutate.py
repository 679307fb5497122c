"""Byte-wise mutations, and those of plain data: what a flipped bit, a torn write, an editor or an attacker does.

Every mutation is drawn with the `random.Random` that it is given, so that a mutant is known by its number.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

#: What a file of data must never run; `tests.fuzz` looks for the file that it would touch.
PAYLOADS: tuple[Any, ...] = (
    {"class_path": "subprocess.Popen", "init_args": {"args": "touch PWNED", "shell": True}},
    {"class_path": "os.system", "init_args": {"command": "touch PWNED"}},
    [{"class_path": "subprocess.run", "init_args": {"args": ["touch", "PWNED"]}}],
    {"__reduce__": ["os.system", ["touch PWNED"]]},
)


class Raw(str):
    """JSON text that stands for itself, such as a number that Python would write otherwise."""


#: Values that no reader should stumble over.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 9, 4.9, -0.0, 1e308, 5e-324, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("[" * 5000 + "]" * 5000)),
    *(Raw('{"a":' * 5000 + "1" + "}" * 5000), Raw("0x10"), Raw("01"), Raw("")),
    *("", "x", "4", "nan", "../../etc/passwd", "a" * 100_000, "\x00", "\x1b[31m", "\ud800", "é", "[[1]]", "1e-3"),
    *([], {}, [[]], [None], [1, 2, 3], {"": 0}, {"a": {"b": {}}}, [0] * 10_000),
    *PAYLOADS,
)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Changes some bytes, one to three times."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        draw.choice(_BYTE_WISE)(data, draw)
    return bytes(data)


def mutate_plain(content: Any, draw: random.Random) -> Any:
    """Returns plain data with one to two of its nodes changed."""
    changed = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2))):
        changed = _mutate_node(changed, draw)
    return changed


def dump(content: Any, draw: random.Random | None = None) -> str:
    """Writes plain data as JSON, `Raw` parts as they are; with a generator sometimes with a key twice."""
    text = _dump(content, draw if draw is not None and draw.random() < 0.1 else None)
    return text


# Bytes ------------------------------------------------------------------------------------------------------


def _somewhere(data: bytearray, draw: random.Random) -> tuple[int, int]:
    """Draws where a run of bytes begins and how long it is, mostly short."""
    start = draw.randrange(len(data) + 1)
    return start, min(len(data) - start, draw.choice((1, 1, 2, 4, 8, 16, 64, 256, 4096)))


def _flip(data: bytearray, draw: random.Random) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _put(data: bytearray, draw: random.Random) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, draw.randrange(256)))


def _truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.choice((0, 1, len(data) // 2, max(0, len(data) - 1), draw.randrange(len(data) + 1))) :]


def _insert(data: bytearray, draw: random.Random) -> None:
    start, length = _somewhere(data, draw)
    data[start:start] = draw.randbytes(max(1, length))


def _append(data: bytearray, draw: random.Random) -> None:
    data += draw.choice((b"\0", b"\n", b" ", b"x", bytes(data[:100]), draw.randbytes(20), bytes(data)))


def _delete(data: bytearray, draw: random.Random) -> None:
    start, length = _somewhere(data, draw)
    del data[start : start + length]


def _fill(data: bytearray, draw: random.Random) -> None:
    start, length = _somewhere(data, draw)
    data[start : start + length] = draw.choice((b"\0", b"\xff", b" ", b"9")) * length


def _swap(data: bytearray, draw: random.Random) -> None:
    one, length = _somewhere(data, draw)
    other = draw.randrange(len(data) + 1)
    length = min(length, len(data) - other)
    data[one : one + length], data[other : other + length] = data[other : other + length], data[one : one + length]


def _splice(data: bytearray, draw: random.Random) -> None:
    start, length = _somewhere(data, draw)
    target = draw.randrange(len(data) + 1)
    data[target:target] = data[start : start + length]


def _number(data: bytearray, draw: random.Random) -> None:
    """Replaces a digit, or a little-endian size."""
    digits = [index for index, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    if digits and draw.random() < 0.7:
        data[draw.choice(digits)] = draw.choice(b"0123456789.-e")
    elif len(data) >= 8:
        start = draw.randrange(len(data) - 7)
        data[start : start + 8] = draw.choice((0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")


_BYTE_WISE = (*(_flip, _flip, _flip, _put, _put, _truncate, _insert, _append, _delete, _fill, _swap, _splice, _number),)


# Plain data -------------------------------------------------------------------------------------------------


def _nodes(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all nodes, at most some thousand."""
    found = [path]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items)[:200]:
        found += _nodes(value, (*path, key))
        if len(found) > 5000:
            break
    return found


def _mutate_node(content: Any, draw: random.Random) -> Any:
    path = draw.choice(_nodes(content))
    if not path:
        return _odd(draw) if draw.random() < 0.3 else _with(content, draw)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    draw.choice(_ON_NODES)(parent, path[-1], draw)
    return content


def _odd(draw: random.Random) -> Any:
    """Draws an odd value: a copy, since what stands in a mutant may be changed again."""
    return copy.deepcopy(draw.choice(ODD))


def _with(content: Any, draw: random.Random) -> Any:
    """Adds what does not belong there."""
    if isinstance(content, dict):
        content[draw.choice(("more", "", "class_path", "__class__", "format", "a" * 1000))] = _odd(draw)
    elif isinstance(content, list):
        content.append(_odd(draw))
    return content


def _replace(parent: Any, key: Any, draw: random.Random) -> None:
    parent[key] = _odd(draw)


def _drop(parent: Any, key: Any, draw: random.Random) -> None:
    del parent[key]


def _grow(parent: Any, key: Any, draw: random.Random) -> None:
    parent[key] = _with(parent[key], draw)


def _wrap(parent: Any, key: Any, draw: random.Random) -> None:
    parent[key] = draw.choice(([parent[key]], {"a": parent[key]}, str(parent[key]), [parent[key]] * 3))


def _nudge(parent: Any, key: Any, draw: random.Random) -> None:
    """Changes a value to another one of its type."""
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int | float) and abs(value) < 1e300:
        parent[key] = draw.choice((value + 1, value - 1, -value, value * 1000, value + 0.5, float(value), str(value)))
    elif isinstance(value, str):
        parent[key] = draw.choice((value[:-1], f"{value}x", value.upper(), value[::-1], ""))
    elif isinstance(value, list):
        parent[key] = draw.choice((value[:-1], value + value, value[::-1], value[1:]))
    elif isinstance(value, dict):
        parent[key] = dict(list(value.items())[::-1][:-1])


def _rename(parent: Any, key: Any, draw: random.Random) -> None:
    if isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)


def _exchange(parent: Any, key: Any, draw: random.Random) -> None:
    other = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


_ON_NODES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    *(_replace, _replace, _replace, _drop, _grow, _wrap, _nudge, _nudge, _rename, _exchange),
)


def _dump(content: Any, twice: random.Random | None) -> str:
    if isinstance(content, Raw):
        return str(content)
    if isinstance(content, dict):
        items = [f"{json.dumps(str(key))}: {_dump(value, twice)}" for key, value in content.items()]
        if items and twice is not None and twice.random() < 0.5:
            items.insert(twice.randrange(len(items) + 1), twice.choice(items))
        return "{" + ", ".join(items) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(_dump(value, twice) for value in content) + "]"
    return _scalar(content)


def _scalar(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**70:
        return f"{'-' * (value < 0)}1{'0' * 400}"
    return json.dumps(value)
