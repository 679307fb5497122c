"""Errors that are the user's to mend: the command line prints them as one sentence and exits with code 2."""

import difflib
from collections.abc import Iterable


class QuantenvError(ValueError):
    """A mistake in what quantenv was given: says what was wrong, what was expected and what to do."""


class InfeasibleBudgetError(QuantenvError):
    """No allowed allocation meets the budget."""


class AllocationError(QuantenvError):
    """An allocation is malformed or belongs to another network."""


class UnsupportedLayerError(QuantenvError):
    """The network holds a layer that cannot be quantized here."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> QuantenvError:
    """Builds the error for a name that is not registered, with the nearest registered names.

    Args:
        kind: What was looked up, for example ``"task"``.
        name: The name that was not found.
        known: Every name that would have been accepted.

    Returns:
        The error, to be raised by the caller.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return QuantenvError(f"Unknown {kind} {str(name)!r}.{hint} Known: {', '.join(known)}.")
