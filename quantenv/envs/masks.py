"""Which options of a decision are open: the device's bit-widths, and the budget when it is masked.

An option is open when cost so far + this option + the minimum of the rest <= budget, for every budgeted sum. What is
left of the budget for each option is worked out and sorted once, so a mask is a look-up.

Units of costs and rows of allocations are the groups of the walk here: one layer each, or the sum over tied layers. A
budget on a maximum of several sums is that budget on each of them.

Tensors that several groups read are stored at the most bits that one of them wants. Each such term starts at the least
that these groups can end with, and a decision that goes beyond what is reached adds the difference: the minimum of the
rest, every group at its fewest bits, adds nothing to it.
"""

from bisect import bisect_left

import numpy as np

from quantenv.envs.walk import Walk
from quantenv.hardware.budget import TOLERANCE
from quantenv.hardware.rows import CostRows, Term


def within(costs: np.ndarray, limits: np.ndarray) -> bool:
    """Whether costs (M,) meet their limits (M,), up to the rounding that `TOLERANCE` allows."""
    return bool((costs / limits <= 1 + TOLERANCE).all())


def cheapest_bits(allowed: np.ndarray, costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Finds each group's cheapest allowed bits.

    With one metric, or costs that grow with the bits, an option is cheapest in every metric at once. Where
    metrics disagree, the option with the least sum of cost / limit stands in.

    Args:
        allowed: bool (G, 8, 8).
        costs: Budgeted costs, float64 (M, G, 8, 8).
        limits: Budgets, float64 (M,).

    Returns:
        (weight bits, activation bits), int64 (G, 2); the fewest bits among equals.
    """
    total = np.where(allowed, (costs / limits[:, None, None, None]).sum(axis=0), np.inf)
    flat = total.reshape(len(total), -1).argmin(axis=1)
    return np.stack(np.divmod(flat, total.shape[-1]), axis=1) + 1


class Options:
    """The options of one decision: which are legal, and what may be spent before each."""

    def __init__(self, legal: np.ndarray, room: np.ndarray) -> None:
        """Sorts what may be spent.

        Args:
            legal: Options that exist, bool (n,).
            room: What may be spent before each option, float64 (M, n).
        """
        self._legal = legal
        self._room = room
        # An option is open while no more is spent than its room. With the rooms of a metric in ascending order, what
        # is spent has passed the first r of them, and row r of a table made once is the mask.
        self._levels = []
        for rooms in room:
            ascending = np.sort(rooms)
            rows = [legal & (rooms >= passed) for passed in (*ascending, np.nan)]
            self._levels.append((ascending.tolist(), rows))

    def open(self, spent: np.ndarray) -> np.ndarray:
        """Returns the open options, bool (n,), at least one, not to be changed; `spent` is float64 (M,)."""
        mask = self._legal
        for (ascending, rows), amount in zip(self._levels, spent.tolist(), strict=True):
            mask = mask & rows[bisect_left(ascending, amount)]
        return mask

    def open_beyond(self, spent: np.ndarray) -> np.ndarray:
        """Returns the open options, bool (n,), where each option adds something of its own: `spent` is (M, n)."""
        mask: np.ndarray = self._legal & (spent <= self._room).all(axis=0)
        return mask

    def open_many(self, spent: np.ndarray) -> np.ndarray:
        """Returns the same for N episodes, bool (N, n); `spent` is float64 (N, M)."""
        return self._legal & (spent[:, :, None] <= self._room).all(axis=1)


class Masks:
    """Open options of every decision.

    With budgets, the completion by each group's cheapest bits stays within every budget whatever open options
    are taken. With one sum, or costs that grow with the bits, an option is closed only if every completion
    breaks a budget. Budgets that disagree about a group's cheapest bits are refused by `check_feasible`; where
    they disagree only about the activations beside some weights, some feasible allocations may be closed too.
    """

    def __init__(self, walk: Walk, costs: CostRows, limits: np.ndarray) -> None:
        """Works out what each option leaves.

        Args:
            walk: The decisions.
            costs: Budgeted costs of the groups, M rows; M = 0 when the budget is not masked.
            limits: Budgets, float64 (M,), which the cheapest bits meet.
        """
        self._cheapest = cheapest_bits(walk.allowed, costs.values, limits)
        self._costs = costs.values
        self._limits = limits
        self._terms: list[list[tuple[int, Term]]] = [
            [(index, term) for index, term in enumerate(costs.terms) if group in term.units and term.values.any()]
            for group in walk.groups
        ]
        self._activations: dict[tuple[int, int], np.ndarray] = {}
        self._options = [self._options_at(walk, decision) for decision in range(walk.n_decisions)]

    def options(self, decision: int, weight_bits: int) -> Options:
        """Returns a decision's options, given the weight bits of its group if they are settled, else 0."""
        return self._options[decision][weight_bits]

    def open(self, decision: int, weight_bits: int, spent: np.ndarray, reached: np.ndarray) -> np.ndarray:
        """Returns the open options, bool (n,), at least one of them, not to be changed.

        Args:
            decision: Index of the decision.
            weight_bits: The weight bits of the decision's group if they are settled, else 0.
            spent: Budgeted costs of all groups whose bits are settled, pinned ones included, and of the terms as far as
                they are reached, float64 (M,).
            reached: Activation bits - 1 that each term has reached, int64, in the order of the costs' terms.
        """
        options = self._options[decision][weight_bits]
        if not self._terms[decision]:
            return options.open(spent)
        bits, added = self._activations[decision, weight_bits], spent[:, None]
        for index, term in self._terms[decision]:
            at = reached[index]
            added = added + term.values[:, np.maximum(bits, at)] - term.values[:, at, None]
        return options.open_beyond(added)

    def _options_at(self, walk: Walk, decision: int) -> dict[int, Options]:
        """The options by the group's settled weight bits."""
        group, kind = int(walk.groups[decision]), walk.kinds[decision]
        later = np.unique(walk.groups[walk.groups > group])
        weight, activation = self._cheapest[later].T - 1
        room = self._limits * (1 + TOLERANCE) - self._costs[:, later, weight, activation].sum(axis=1)
        if kind == "both":
            return {0: self._fill(walk, decision, walk.options, room)}
        if kind == "activations":
            grid = {weight: [(weight, activation) for activation in walk.bits] for weight in walk.bits}
            return {weight: self._fill(walk, decision, np.array(pairs), room, weight) for weight, pairs in grid.items()}
        columns = [self._cheapest_activation(walk, group, weight) for weight in walk.bits]
        return {0: self._fill(walk, decision, np.stack([walk.bits, columns], axis=1), room)}

    def _cheapest_activation(self, walk: Walk, group: int, weight: int) -> int:
        row = np.zeros_like(walk.allowed[group])
        row[weight - 1] = walk.allowed[group, weight - 1]
        return int(cheapest_bits(row[None], self._costs[:, [group]], self._limits)[0, 1])

    def _fill(self, walk: Walk, decision: int, pairs: np.ndarray, room: np.ndarray, weight_bits: int = 0) -> Options:
        group = int(walk.groups[decision])
        weight, activation = pairs.T - 1
        self._activations[decision, weight_bits] = activation
        legal = walk.allowed[group, weight, activation]
        costs = self._costs[:, group, weight, activation]
        left = room[:, None] - costs
        if legal.any():
            # What is cheapest here was counted as this group's minimum when earlier options were opened, so
            # it always fits: saying so keeps rounding from ever closing every option.
            total = np.where(legal, (costs / self._limits[:, None]).sum(axis=0), np.inf)
            left[:, total.argmin()] = np.inf
        return Options(legal, left)
