"""Costs as sums of look-ups: of every layer at its bits, and of every tensor that several layers read at the most bits.

A tensor that one layer reads is stored at that layer's activation bits, so what it costs can be looked up with the
layer. One that several layers read is stored once, at the most bits that any of them wants: what it costs belongs to
no layer alone and is a term beside them. Both grow with the bits, so that the cheapest completion of any half-made
allocation is known, and with it the masks: every undecided layer at its fewest bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantenv.core.allocation import MAX_BITS, MIN_BITS
from quantenv.core.errors import QuantenvError


@dataclass(frozen=True, eq=False)
class Term:
    """What depends on the most activation bits among several units: layers, or groups of tied ones.

    Raises:
        QuantenvError: If there are less than two units, or the values fall anywhere.
    """

    units: tuple[int, ...]
    """Indices of the units that read it, ascending."""
    values: np.ndarray
    """By those bits - 1: float64 (8,) of one cost, (R, 8) of several; never falling."""

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if len(set(self.units)) < 2 or values.shape[-1:] != (MAX_BITS,) or (np.diff(values, axis=-1) < 0).any():
            raise QuantenvError("A term needs two units that read it, and 8 costs that never fall with the bits.")
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, eq=False)
class CostRows:
    """R costs, each a sum over U units and over terms."""

    values: np.ndarray
    """Float64 (R, U, 8, 8) = [row, unit, weight bits - 1, activation bits - 1]."""
    terms: tuple[Term, ...] = ()
    """With values (R, 8)."""

    def cost_of(self, bits: np.ndarray) -> np.ndarray:
        """Returns the costs of allocations, (weight bits, activation bits) int64 (..., U, 2), as (R, ...)."""
        weight, activation = bits[..., 0] - 1, bits[..., 1] - 1
        total: np.ndarray = self.values[:, np.arange(self.values.shape[1]), weight, activation].sum(axis=-1)
        for term in self.terms:
            total = total + term.values[:, activation[..., list(term.units)].max(axis=-1)]
        return total

    def take(self, rows: Sequence[int] | np.ndarray) -> "CostRows":
        """Returns some of the rows, with the terms that they have."""
        rows = np.asarray(rows, dtype=np.int64)
        terms = (Term(term.units, term.values[rows]) for term in self.terms)
        return CostRows(self.values[rows], tuple(term for term in terms if term.values.any()))

    def least(self, allowed: np.ndarray) -> np.ndarray:
        """Returns each row's least cost of any allowed allocation, float64 (R,).

        Args:
            allowed: Which bits each unit may have, bool (U, 8, 8), at least one pair each.
        """
        low: np.ndarray = np.where(allowed, self.values, np.inf).min(axis=(2, 3)).sum(axis=1)
        fewest = np.where(allowed, np.arange(MAX_BITS), MAX_BITS).min(axis=(1, 2))
        return low + sum(term.values[:, fewest[list(term.units)].max()] for term in self.terms)

    def most(self, allowed: np.ndarray) -> np.ndarray:
        """Returns each row's greatest cost of any allowed allocation, float64 (R,); see `least`."""
        high: np.ndarray = np.where(allowed, self.values, -np.inf).max(axis=(2, 3)).sum(axis=1)
        highest = np.where(allowed, np.arange(MAX_BITS), -1).max(axis=(1, 2))
        return high + sum(term.values[:, highest[list(term.units)].max()] for term in self.terms)


def stacked(rows: Sequence[CostRows]) -> CostRows:
    """Puts rows below each other; terms of the same units become one."""
    values = np.concatenate([each.values for each in rows])
    found: dict[tuple[int, ...], np.ndarray] = {}
    first = 0
    for each in rows:
        for term in each.terms:
            joined = found.setdefault(term.units, np.zeros((len(values), MAX_BITS)))
            joined[first : first + len(each.values)] += term.values
        first += len(each.values)
    return CostRows(values, tuple(Term(units, joined) for units, joined in sorted(found.items())))


def checked_bits(kind: str, bits: Sequence[int] | np.ndarray, layers: int) -> np.ndarray:
    """Returns bit-widths, one for each layer, as an array (L,).

    Raises:
        QuantenvError: If there is not one whole number from 1 to 8 for each layer.
    """
    array = np.asarray(bits)
    if array.shape != (layers,):
        raise QuantenvError(
            f"Got {kind} bits of shape {array.shape} for a cost table of {layers} layers: give one bit-width per layer."
        )
    # Checked, because 0 bits would silently index the table from its end.
    if array.dtype.kind not in "iu" or ((array < MIN_BITS) | (array > MAX_BITS)).any():
        raise QuantenvError(f"{kind.capitalize()} bits are {array.tolist()}; expected whole numbers from 1 to 8.")
    return array
