"""Errors that are the user's to mend: the command line prints them as one sentence and exits with code 2."""

import difflib
import reprlib
from collections.abc import Iterable


class QuantenvError(ValueError):
    """A mistake in what quantenv was given: says what was wrong, what was expected and what to do."""


class InfeasibleBudgetError(QuantenvError):
    """No allowed allocation meets the budget."""


class AllocationError(QuantenvError):
    """An allocation is malformed or belongs to another network."""


class UnsupportedLayerError(QuantenvError):
    """The network holds a layer that cannot be quantized here."""


#: The longest piece of a value that a message quotes.
SHOWN = 80
#: The most names that a message lists; more are not listed at all where one of them is near.
LISTED = 30


def shown(value: object, limit: int = SHOWN) -> str:
    """Returns a value as messages quote it: its `repr` on one line, of which at most `limit` characters are made."""
    cut = reprlib.Repr()
    cut.maxlist = cut.maxtuple = cut.maxdict = limit // 3
    cut.maxstring = cut.maxlong = cut.maxother = 2 * limit
    try:
        text = " ".join(cut.repr(value).split())
    except ValueError:  # a whole number of thousands of digits is not printed
        text = f"{type(value).__name__} with too many digits to print"
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def one_line(text: object, limit: int = 300) -> str:
    """Returns what another library says as a part of a sentence: on one line, printable, and cut if it is long."""
    line = "".join(each if each.isprintable() else "?" for each in " ".join(str(text).split()))
    return line if len(line) <= limit else f"{line[: limit - 4]} ..."


def unknown_name(kind: str, name: object, known: Iterable[str]) -> QuantenvError:
    """Builds the error for a name that is not registered, with the nearest registered names.

    Args:
        kind: What was looked up, for example ``"task"``.
        name: The name that was not found.
        known: Every name that would have been accepted.

    Returns:
        The error, to be raised by the caller.
    """
    known = sorted(one_line(each, SHOWN) for each in known)
    text = name if isinstance(name, str) else shown(name)
    near = difflib.get_close_matches(text[:SHOWN], known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    listed = "" if near and more else f" Known: {', '.join(known[:LISTED]) or 'none'}{more}."
    return QuantenvError(f"Unknown {kind} {shown(text)}.{hint}{listed}")
