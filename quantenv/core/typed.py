"""Values against the types that a dataclass states: checked where options are made, and said in plain words."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from quantenv.core.errors import QuantenvError, shown

#: What an option may be where only its name is known beforehand.
Scalar = bool | int | float | str | None
#: Whole numbers lie between minus this and this, as in every file format and in NumPy.
LARGEST = 2**63 - 1
#: The greatest seed that NumPy, torch and Stable-Baselines3 all take.
MOST_SEED = 2**32 - 1
#: Threads of torch at most: some thousands end the process without a word.
MOST_THREADS = 512
#: Processes, workers and searches at once at most.
MOST_WORKERS = 1024

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
_MANY: Mapping[Any, str] = {
    int: "whole numbers, as 2,4,8",
    float: "numbers, as 0.4,0.5",
    str: "names, as first,second",
}
_BY_NAME: Mapping[Any, str] = {int: "whole numbers", float: "numbers", str: "texts", Scalar: "plain values"}


def short(value: Any) -> str:
    """Returns how a message about an option names a value: as YAML writes ``null``, ``true`` and ``false``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def words(kind: Any) -> str:
    """Returns what a type asks for: ``a whole number or null``."""
    if kind == Scalar:
        return "a plain value"
    if kind in _WORDS:
        return _WORDS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, Sequence):
        return _MANY.get(arguments[0], f"a list of {words(arguments[0])}")
    if origin in (dict, Mapping):
        return f"{_BY_NAME.get(arguments[1], words(arguments[1]))} by name, as {{name: value}}"
    if members(kind) == (kind,):
        return f"a value of type {getattr(kind, '__name__', kind)}"
    parts = [words(part) for part in members(kind)]
    return ", ".join(parts[:-1]) + " or " + parts[-1]


def members(kind: Any) -> tuple[Any, ...]:
    """Returns the types of which a value may be any."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def checked(value: Any, kind: Any, name: str) -> Any:
    """Returns a value if it is of a type.

    Args:
        value: A plain value or one of NumPy's.
        kind: bool, int, float, str, None, lists of these and mappings from names to these, or any of several.
        name: How a message calls the value, such as ``--seed``.

    Returns:
        The value; whole numbers that stand for others as floats, arrays as lists.

    Raises:
        QuantenvError: If it is of another type, infinite, NaN, or beyond 64 bits.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    by_name = next((part for part in members(kind) if typing.get_origin(part) in (dict, Mapping)), None)
    if isinstance(value, Mapping) and by_name is not None:
        each = typing.get_args(by_name)[1]
        for key in value:
            if type(key) is not str:
                raise QuantenvError(f"{name} has the name {short(key)}; expected text: put it in quotes.")
        return {key: checked(item, each, f"{name}.{key}") for key, item in value.items()}
    try:
        plain = msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter for halves of characters
        raise QuantenvError(f"{name} is {short(value)}; expected {words(kind)}.") from error
    for item in plain if isinstance(plain, list) else (plain,):
        if isinstance(item, float) and not math.isfinite(item):
            raise QuantenvError(f"{name} is {short(value)}; expected a number that is neither infinite nor NaN.")
        if isinstance(item, int) and not -LARGEST <= item <= LARGEST:
            raise QuantenvError(f"{name} is {short(value)}; expected a whole number of at most 19 digits.")
    return plain


def check_fields(instance: Any, before: str = "") -> None:
    """Checks every field of a dataclass against its type, before anything compares its values.

    NumPy's numbers become Python's; what is itself a dataclass has checked itself.

    Args:
        instance: The dataclass; call this first in its `__post_init__`.
        before: Stands before a field's name in messages, such as ``--``.

    Raises:
        QuantenvError: If a field is of another type, infinite, NaN, or beyond 64 bits.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):  # type: ignore[arg-type]
                raise QuantenvError(f"{before}{field.name} is {short(value)}; expected options by name.")
            continue
        plain = checked(value, field.type, f"{before}{field.name}")
        if type(plain) is not type(value) and isinstance(value, np.ndarray | np.generic):
            object.__setattr__(instance, field.name, plain)


def require_within(instance: Any, low: float, high: float, *names: str, before: str = "--") -> None:
    """Checks numbers of a dataclass.

    Args:
        instance: The dataclass.
        low: The least that is allowed.
        high: The most that is allowed.
        names: Fields; one that is None is not looked at.
        before: Stands before a field's name in messages.

    Raises:
        QuantenvError: If a field lies outside.
    """
    for name in names:
        value = getattr(instance, name)
        if value is not None and not low <= value <= high:
            whole = "whole number" if isinstance(value, int) else "number"
            bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
            raise QuantenvError(f"{before}{name} is {short(value)}; expected a {whole} {bounds}.")
