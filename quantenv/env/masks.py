"""Which options of a decision are open: the device's bit-widths, and the budget when it is masked.

An option is open when cost so far + this option + the minimum of the rest <= budget, for every budgeted
metric. What is left of the budget for each option is worked out once, so a mask is one comparison per option
and metric.
"""

import numpy as np

from quantenv.env.decisions import Walk
from quantenv.hardware.budget import TOLERANCE


def within(costs: np.ndarray, limits: np.ndarray) -> bool:
    """Whether costs (M,) meet their limits (M,), up to the rounding that `TOLERANCE` allows."""
    return bool((costs / limits <= 1 + TOLERANCE).all())


def cheapest_bits(allowed: np.ndarray, costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Finds each layer's cheapest allowed bits.

    With one metric, or costs that grow with the bits, an option is cheapest in every metric at once. Where
    metrics disagree, the option with the least sum of cost / limit stands in.

    Args:
        allowed: bool (L, 8, 8).
        costs: Budgeted costs, float64 (M, L, 8, 8).
        limits: Budgets, float64 (M,).

    Returns:
        (weight bits, activation bits), int64 (L, 2); the fewest bits among equals.
    """
    total = np.where(allowed, (costs / limits[:, None, None, None]).sum(axis=0), np.inf)
    flat = total.reshape(len(total), -1).argmin(axis=1)
    return np.stack(np.divmod(flat, total.shape[-1]), axis=1) + 1


def cost_of(costs: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Sums costs, float64 (M, L, 8, 8), over the layers of a finished allocation, int64 (L, 2), to (M,)."""
    return costs[:, np.arange(len(bits)), bits[:, 0] - 1, bits[:, 1] - 1].sum(axis=1)


class Masks:
    """Open options of every decision.

    With budgets, the completion by each layer's cheapest bits stays within every budget whatever open options
    are taken. With one metric, or costs that grow with the bits, an option is closed only if every completion
    breaks a budget. Budgets that disagree about a layer's cheapest bits are refused by `check_feasible`; where
    they disagree only about the activations beside some weights, some feasible allocations may be closed too.
    """

    def __init__(self, walk: Walk, costs: np.ndarray, limits: np.ndarray) -> None:
        """Works out what each option leaves.

        Args:
            walk: The decisions.
            costs: Budgeted costs, float64 (M, L, 8, 8); M = 0 when the budget is not masked.
            limits: Budgets, float64 (M,), which the cheapest bits meet.
        """
        self._cheapest = cheapest_bits(walk.allowed, costs, limits)
        self._costs = costs
        self._limits = limits
        self._options = [self._options_at(walk, decision) for decision in range(walk.n_decisions)]

    def open(self, decision: int, weight_bits: int, spent: np.ndarray) -> np.ndarray:
        """Returns the open options, bool (n,), at least one of them.

        Args:
            decision: Index of the decision.
            weight_bits: The weight bits of the decision's layer if they are settled, else 0.
            spent: Budgeted costs of all layers whose bits are settled, pinned ones included, float64 (M,).
        """
        legal, room = self._options[decision][weight_bits]
        return legal & (spent[:, None] <= room).all(axis=0)

    def _options_at(self, walk: Walk, decision: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Legal options (n,) and what may be spent before each (M, n), by the layer's settled weight bits."""
        layer, kind = int(walk.layers[decision]), walk.kinds[decision]
        later = np.unique(walk.layers[walk.layers > layer])
        weight, activation = self._cheapest[later].T - 1
        room = self._limits * (1 + TOLERANCE) - self._costs[:, later, weight, activation].sum(axis=1)
        if kind == "both":
            return {0: self._fill(walk, layer, walk.options, room)}
        if kind == "activations":
            grid = {weight: [(weight, activation) for activation in walk.bits] for weight in walk.bits}
            return {weight: self._fill(walk, layer, np.array(pairs), room) for weight, pairs in grid.items()}
        columns = [self._cheapest_activation(walk, layer, weight) for weight in walk.bits]
        return {0: self._fill(walk, layer, np.stack([walk.bits, columns], axis=1), room)}

    def _cheapest_activation(self, walk: Walk, layer: int, weight: int) -> int:
        row = np.zeros_like(walk.allowed[layer])
        row[weight - 1] = walk.allowed[layer, weight - 1]
        return int(cheapest_bits(row[None], self._costs[:, [layer]], self._limits)[0, 1])

    def _fill(self, walk: Walk, layer: int, pairs: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight, activation = pairs.T - 1
        legal = walk.allowed[layer, weight, activation]
        costs = self._costs[:, layer, weight, activation]
        left = room[:, None] - costs
        if legal.any():
            # What is cheapest here was counted as this layer's minimum when earlier options were opened, so
            # it always fits: saying so keeps rounding from ever closing every option.
            total = np.where(legal, (costs / self._limits[:, None]).sum(axis=0), np.inf)
            left[:, total.argmin()] = np.inf
        return legal, left
