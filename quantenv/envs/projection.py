"""HAQ's projection: a finished allocation is walked down to the budget."""

import numpy as np

from quantenv.envs.masks import cheapest_bits, within
from quantenv.envs.walk import Walk
from quantenv.hardware.rows import CostRows


def project(bits: np.ndarray, walk: Walk, costs: CostRows, limits: np.ndarray) -> np.ndarray:
    """Lowers bits one option at a time until every budget is met.

    As in `_final_action_wall` of HAQ's linear quantization environment (Wang et al., CVPR 2019;
    mit-han-lab/haq): sweeps from the last decision to the first, each lowered by one option, stopping as soon
    as the allocation fits. Within a group activations are therefore lowered before weights. Pinned and fixed
    bits are not decisions and stay; nothing falls below the lowest option. A tensor that several groups read costs less
    only once all of them are lowered, which the sweep goes on to do. If lowering ends above the budget,
    because costs do not grow with the bits, every group takes its cheapest bits.

    Args:
        bits: Finished allocation of the walk's groups, int64 (G, 2).
        walk: The decisions.
        costs: Budgeted costs of the groups, M rows.
        limits: Budgets, float64 (M,); the cheapest bits must meet them.

    Returns:
        The executed allocation, int64 (G, 2); equal to `bits` if that was within budget.
    """
    bits = bits.copy()
    while not within(costs.cost_of(bits), limits):
        moved = False
        for decision in reversed(range(walk.n_decisions)):
            for column in _columns(walk, decision):
                if lower := _next_lower(bits, walk, int(walk.groups[decision]), column):
                    bits[walk.groups[decision], column] = lower
                    moved = True
                    if within(costs.cost_of(bits), limits):
                        return bits
        if not moved:
            return cheapest_bits(walk.allowed, costs.values, limits)
    return bits


def _columns(walk: Walk, decision: int) -> tuple[int, ...]:
    """Columns of the allocation that a decision settles, in the order in which they are lowered."""
    return {"weights": (0,), "activations": (1,), "both": (1, 0)}[walk.kinds[decision]]


def _next_lower(bits: np.ndarray, walk: Walk, group: int, column: int) -> int:
    """The next lower option that is allowed beside the group's other bits; 0 if there is none."""
    for option in reversed(walk.bits):
        pair = bits[group].copy()
        pair[column] = option
        if option < bits[group, column] and walk.allowed[group, pair[0] - 1, pair[1] - 1]:
            return option
    return 0
