"""Costs of the walk's groups: what masks, observations and corrections count while an episode runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.envs.walk import Walk
from quantenv.hardware import CostTable, PeakMemory
from quantenv.hardware.rows import CostRows, Term, stacked


@dataclass(frozen=True, eq=False)
class GroupCosts:
    """One metric's costs of the groups."""

    rows: CostRows
    """Sums over the groups; the greatest is the cost."""
    reference: float
    """The network's cost with 8-bit weights and activations."""


def group_costs(walk: Walk, table: CostTable | PeakMemory) -> GroupCosts:
    """Sums a metric's costs over the groups of a walk.

    What is known whatever is decided is settled here. A term whose units are all in one group is looked up with that
    group, one whose activation bits are all fixed is a constant; so where activations are not decided, no terms are
    left. Of a maximum those sums go that others always exceed.

    Args:
        walk: The decisions.
        table: Costs of the network's layers.
    """
    rows = table.rows
    if walk.spread is None:
        values = np.moveaxis(walk.per_group(np.moveaxis(rows.values, 1, 0)), 0, 1)
    else:
        values = np.stack([walk.group_costs(each) for each in rows.values])
    least, most = _activation_range(walk)
    terms = []
    for term in rows.terms:
        groups = sorted({int(walk.group_of[unit]) for unit in term.units})
        free = tuple(group for group in groups if least[group] < most[group])
        held = max((least[group] for group in groups if group not in free), default=0)
        by_bits = term.values[:, np.maximum(np.arange(MAX_BITS), held)]
        if len(free) > 1:
            terms.append(Term(free, by_bits))
        elif free:
            values[:, free[0]] += by_bits[:, None, :]
        else:
            values[:, groups[0]] += by_bits[:, 0, None, None]
    grouped = CostRows(values, tuple(terms))
    if len(values) > 1:
        low, high = grouped.least(walk.allowed), grouped.most(walk.allowed)
        kept = high > low.max()
        kept[low.argmax()] = True
        grouped = grouped.take(np.flatnonzero(kept))
    return GroupCosts(grouped, table.reference)


def _activation_range(walk: Walk) -> tuple[list[int], list[int]]:
    """Fewest and most activation bits - 1 that each group can have."""
    if walk.spread is not None:
        assert walk.activations is not None
        fixed = [int(walk.activations[list(members)].max()) - 1 for members in walk.members]
        return fixed, fixed
    bits = np.arange(MAX_BITS)
    least = np.where(walk.allowed, bits, MAX_BITS).min(axis=(1, 2))
    most = np.where(walk.allowed, bits, -1).max(axis=(1, 2))
    return least.tolist(), most.tolist()


class EpisodeCosts:
    """The sums that are kept while an episode runs, and what they begin with.

    These are the metrics that are sums, and the steps of a maximum if it has a budget.
    """

    def __init__(self, walk: Walk, costs: Mapping[str, GroupCosts], budgeted: tuple[str, ...]) -> None:
        """Lays the sums out.

        Args:
            walk: The decisions.
            costs: Costs of the groups, by metric.
            budgeted: Metrics with a budget.
        """
        kept = {name: each.rows for name, each in costs.items() if name != PeakMemory.metric or name in budgeted}
        self.rows = stacked(list(kept.values()))
        """All of them, R rows."""
        ends = np.cumsum([len(rows.values) for rows in kept.values()]).tolist()
        self.places = dict(zip(kept, map(np.arange, [0, *ends], ends), strict=False))
        """Rows of each metric, int64."""
        counts = [len(self.places[name]) for name in budgeted]
        self.budgeted = np.concatenate([self.places[name] for name in budgeted] or [np.zeros(0, dtype=np.int64)])
        """Rows with a budget, int64 (M,), in the order of the budgets."""
        self.budget_of = np.repeat(np.arange(len(budgeted)), counts)
        """Index of each such row's budget, int64 (M,)."""
        self._prices = np.ascontiguousarray(np.moveaxis(self.rows.values, 0, -1))  # (G, 8, 8, R): a row is one look-up
        self._terms = [
            tuple(index for index, term in enumerate(self.rows.terms) if group in term.units)
            for group in range(len(walk.members))
        ]
        least, _ = _activation_range(walk)
        self.start_reached = np.array([max(least[u] for u in term.units) for term in self.rows.terms], dtype=np.int64)
        """Activation bits - 1 that some unit of each term will have at least: what its tensors cost from the start."""
        held = np.flatnonzero((walk.start > 0).all(axis=1))
        weight, activation = walk.start[held].T - 1
        self.start = self.rows.values[:, held, weight, activation].sum(axis=1)
        """What the pinned groups and the terms at their least cost, float64 (R,)."""
        for term, reached in zip(self.rows.terms, self.start_reached, strict=True):
            self.start = self.start + term.values[:, reached]

    def charge(
        self, spent: np.ndarray, reached: np.ndarray, group: int, weight_bits: int, activation_bits: int
    ) -> None:
        """Adds what a group costs whose bits are settled.

        Args:
            spent: What is spent so far, float64 (R,), changed in place.
            reached: Most activation bits - 1 of each term's units so far, int64, changed in place.
            group: The group.
            weight_bits: Its weight bits.
            activation_bits: Its activation bits.
        """
        spent += self._prices[group, weight_bits - 1, activation_bits - 1]
        for index in self._terms[group]:
            before = reached[index]
            if activation_bits - 1 > before:
                values = self.rows.terms[index].values
                spent += values[:, activation_bits - 1] - values[:, before]
                reached[index] = activation_bits - 1
