"""Sensitivities that the rows of an evaluation table tell, with no network at hand."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.sensitivity.kinds import TABLE_KINDS, Sensitivity

SPLIT = "search"
#: Counted up when the numbers change for the same table.
VERSION = 1


@runtime_checkable
class Tabulated(Protocol):
    """What is needed of an evaluation table."""

    @property
    def name(self) -> str:
        """Name of the table."""
        ...

    @property
    def bits(self) -> tuple[int, ...]:
        """Weight bits on offer, ascending."""
        ...

    @property
    def activation_bits(self) -> int:
        """Bits of all activations."""
        ...

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices of each group."""
        ...

    @property
    def strides(self) -> tuple[int, ...]:
        """Rows by which the next option of each group is further on."""
        ...

    @property
    def layers(self) -> Sequence[object]:
        """The layers."""
        ...

    @property
    def reference(self) -> Mapping[str, object]:
        """The float network on each split, with its samples."""
        ...

    @property
    def correct(self) -> Mapping[str, np.ndarray]:
        """Samples classified correctly, by split, in the order of the rows."""
        ...

    @property
    def loss(self) -> Mapping[str, np.ndarray]:
        """Mean cross-entropy, by split, in the order of the rows."""
        ...

    @property
    def hash(self) -> str:
        """Content hash."""
        ...


def measure_table(table: Tabulated, kind: str) -> Sensitivity:
    """Reads single-group deviations off a table.

    The base is the row with the most weight bits on offer in all groups (8, in the shipped tables), at the table's
    activation bits. The harm of a group of tied layers is divided evenly over them: it only counts as a sum.

    Args:
        table: The table.
        kind: One of `TABLE_KINDS`.

    Returns:
        The sensitivity: weights NaN at bits that the table does not offer, activations 0 at the table's and NaN at all
        others.

    Raises:
        QuantenvError: If the rows do not tell this kind, or are not of the search split.
    """
    if kind not in TABLE_KINDS:
        raise QuantenvError(
            f"Table {table.name!r} has no network to measure the sensitivity {kind!r} on; its rows tell "
            f"{' and '.join(TABLE_KINDS)}."
        )
    if SPLIT not in table.reference:
        raise QuantenvError(f"Table {table.name!r} has no {SPLIT} split to measure a sensitivity on.")
    values = table.loss[SPLIT]
    if kind == "accuracy":
        samples: int = table.reference[SPLIT].samples  # type: ignore[attr-defined]
        values = 1 - table.correct[SPLIT] / samples
    options = np.arange(len(table.bits))
    top = int(options[-1]) * sum(table.strides)
    columns = np.array(table.bits) - 1
    weights = np.full((len(table.layers), 8), np.nan)
    for layers, stride in zip(table.members, table.strides, strict=True):
        rows = top + (options - options[-1]) * stride
        weights[np.ix_(np.array(layers), columns)] = (values[rows] - values[top]) / len(layers)
    activations = np.full((len(table.layers), 8), np.nan)
    activations[:, table.activation_bits - 1] = 0.0
    evaluations = len(table.members) * (len(table.bits) - 1) + 1
    identity = content_hash([str(VERSION), table.hash, kind])
    return Sensitivity(kind, weights, activations, float(evaluations), identity)
