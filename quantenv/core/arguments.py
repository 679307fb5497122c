"""Numbers and lists as callers write them: Python's own, NumPy's and torch's, read into Python's own or refused."""

import math
import numbers
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from quantenv.core.errors import QuantenvError, shown, unknown_name


def plain(value: Any) -> Any:
    """Returns Python's own value for one of NumPy's or torch's: a number, or lists of them; others as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def whole_number(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """Returns a whole number.

    Args:
        value: Python's, NumPy's or torch's; a truth value is none, nor is 2.0.
        name: What the message calls it.
        low: The least that is accepted.
        high: The greatest that is accepted.

    Raises:
        QuantenvError: If it is no whole number, or out of range.
    """
    number = plain(value)
    whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
    if not whole or (low is not None and number < low) or (high is not None and number > high):
        span = f" from {low} to {high}" if high is not None else f", at least {low}" if low is not None else ""
        raise QuantenvError(f"{name} is {shown(value)}: expected a whole number{span}.")
    return int(number)


def real_number(value: object, name: str) -> float:
    """Returns a number as a float; NaN and infinities are numbers here.

    Args:
        value: Python's (also Decimal and Fraction), NumPy's or torch's; a truth value is none, nor is text.
        name: What the message calls it.

    Raises:
        QuantenvError: If it is no number, or too large for a float.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real | Decimal):
        raise QuantenvError(f"{name} is {shown(value)}: expected a number.")
    try:
        return float(number)
    except OverflowError:
        raise QuantenvError(f"{name} is {shown(value)}: expected a number that a float can hold.") from None


def finite_number(value: object, name: str, low: float = -math.inf, above: float = -math.inf) -> float:
    """Returns a finite number as a float.

    Args:
        value: See `real_number`.
        name: What the message calls it.
        low: The least that is accepted.
        above: What it must be greater than.

    Raises:
        QuantenvError: If it is no finite number, or out of range.
    """
    number = real_number(value, name)
    if not (math.isfinite(number) and number >= low and number > above):
        bound = f" > {above:g}" if above > -math.inf else f" >= {low:g}" if low > -math.inf else ""
        raise QuantenvError(f"{name} is {shown(value)}: expected a finite number{bound}.")
    return number


def listed(values: Any, name: str, of: str) -> list[Any]:
    """Returns the items of a list, tuple, range, array or tensor of one dimension, as Python's own.

    Args:
        values: The items. Text, mappings and sets are none: they hold no order, or something else.
        name: What the message calls them.
        of: What they are, for the message: ``"bit-widths, for example (2, 4, 8)"``.

    Raises:
        QuantenvError: If it is something else.
    """
    items = plain(values)
    if isinstance(items, str | bytes | Mapping | set | frozenset) or not hasattr(items, "__iter__"):
        raise QuantenvError(f"{name} is {shown(values)}: expected a list of {of}.")
    return [plain(item) for item in items]


def one_of(value: object, kind: str, known: Iterable[str]) -> str:
    """Returns one of the known names.

    Raises:
        QuantenvError: If it is none of them.
    """
    if not isinstance(value, str) or value not in (known := list(known)):
        raise unknown_name(kind, value, known)
    return value


def named(values: object, name: str, of: str) -> dict[str, Any]:
    """Returns a mapping from names, as a dictionary of its own.

    Args:
        values: The mapping; None is an empty one.
        name: What the message calls it.
        of: What it maps names to, for the message.

    Raises:
        QuantenvError: If it is something else.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise QuantenvError(f"{name} is {shown(values)}: expected a mapping from names to {of}.")
    return dict(values)


def switch(value: object, name: str) -> bool:
    """Returns a truth value, Python's or NumPy's.

    Raises:
        QuantenvError: If it is none.
    """
    answer = plain(value)
    if not isinstance(answer, bool):
        raise QuantenvError(f"{name} is {shown(value)}: expected True or False.")
    return answer


def read_seed(seed: object) -> int | None:
    """Returns the seed of a reset, or None if there is none.

    Raises:
        QuantenvError: If it is no whole number from 0 on.
    """
    return None if seed is None else whole_number(seed, "seed", 0)


def read_options(options: object) -> dict[str, Any]:
    """Returns a copy of the options of a reset, empty if there are none.

    Raises:
        QuantenvError: If they are no mapping from names.
    """
    return named(options, "options", "values")
