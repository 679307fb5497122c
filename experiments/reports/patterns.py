"""The pattern analysis: mean bits of first, depthwise, pointwise, middle and last layers of what agents found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.leaderboard.statistics import Estimate, bootstrap
from experiments.reports.groups import Group
from experiments.reports.known import CaseKnown
from experiments.reports.searches import Point
from quantenv.core.layers import LayerSpec

#: Kinds in the order of the report. Every layer is of one kind.
KINDS = ("first", "depthwise", "pointwise", "middle", "last")


@dataclass(frozen=True)
class Pattern:
    """Mean bits of one agent's best allocations, or of a reference."""

    label: str
    """Agent or reference."""
    searches: int
    """Best allocations that were averaged, one of each search; 0 for a reference."""
    what: str
    """``weights`` or ``activations``."""
    means: dict[str, Estimate]
    """By kind and for ``all`` layers; the interval is NaN if there are too few searches."""


def layer_kinds(layers: Sequence[LayerSpec]) -> list[str]:
    """Returns each layer's kind: by its place if it is first or last, else by its `LayerSpec`.

    Pointwise is a 1x1 convolution that is not depthwise; middle is everything between first and last that is neither.
    """
    kinds = []
    for index, layer in enumerate(layers):
        if index == 0:
            kinds.append("first")
        elif index == len(layers) - 1:
            kinds.append("last")
        elif layer.depthwise:
            kinds.append("depthwise")
        else:
            kinds.append("pointwise" if layer.kind == "conv" and layer.kernel_size == (1, 1) else "middle")
    return kinds


def patterns(groups: Sequence[Group], layers: Sequence[LayerSpec], known: CaseKnown | None) -> list[Pattern]:
    """Averages the bits of the best allocation of each search, and of the optimum and the best uniform allocation."""
    kinds = layer_kinds(layers)
    decided = groups[0].case.setting.decisions
    found = []
    for column, what in enumerate(("weights", "activations") if decided != "weights" else ("weights",)):
        for group in groups:
            points = [search.best for search in group.searches if search.best]
            if points:
                found.append(_pattern(group.label, len(points), what, points, kinds, column))
        for label, point in () if known is None else (("optimum", known.optimum), ("best uniform", known.uniform)):
            if point is not None:
                found.append(_pattern(label, 0, what, [point], kinds, column))
    return found


def mean_bits(points: Sequence[Point], column: int) -> np.ndarray:
    """Returns the mean bits of each layer over allocations, float64 (L,); column 0 is weights, 1 activations."""
    return np.array([point.bits for point in points], dtype=np.float64)[..., column].mean(axis=0)


def _pattern(
    label: str, searches: int, what: str, points: Sequence[Point], kinds: Sequence[str], column: int
) -> Pattern:
    bits = np.array([point.bits for point in points], dtype=np.float64)[..., column]  # (searches, L)
    means = {}
    for kind in (*KINDS, "all"):
        members = np.array([kind in (each, "all") for each in kinds])
        if members.any():
            means[kind] = bootstrap([bits[:, members].mean(axis=1)], lambda drawn: drawn.mean(axis=1))
    return Pattern(label, searches, what, means)
