"""Fronts of accuracy against cost: which points are on one, how large it is, and the true one of a table."""

import numpy as np

from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.optimum import costs_of_rows, over_rows
from quantenv.hardware import CostTable, PeakMemory


def front(costs: np.ndarray, accuracies: np.ndarray, losses: np.ndarray | None = None) -> np.ndarray:
    """Returns the points that no other beats: none is as cheap and more accurate, or as accurate and cheaper.

    Args:
        costs: Lower is better, float64 (n,).
        accuracies: Higher is better, float64 (n,).
        losses: What chooses among points equal in both, the least; by default the first one is taken.

    Returns:
        Indices of the points by ascending cost and accuracy, int64 (k,); one of several equal ones.
    """
    ties = np.zeros(len(costs)) if losses is None else losses
    order = np.lexsort((ties, -accuracies, costs))
    best = np.maximum.accumulate(accuracies[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = accuracies[order][1:] > best[:-1]
    return order[better]


def hypervolume(costs: np.ndarray, accuracies: np.ndarray, highest_cost: float, lowest_accuracy: float = 0.0) -> float:
    """Returns the area that points dominate, up to a reference point (Zitzler and Thiele, IEEE TEC 3, 1999).

    Args:
        costs: Float64 (n,); points need not be on the front.
        accuracies: Float64 (n,).
        highest_cost: Cost of the reference point; points that cost more count nothing.
        lowest_accuracy: Its accuracy.

    Returns:
        The area in units of cost x accuracy. Divided by a range of costs it is the accuracy above
        `lowest_accuracy` that the front offers on average over budgets drawn uniformly from that range.
    """
    inside = (costs < highest_cost) & (accuracies > lowest_accuracy)
    costs, accuracies = costs[inside], accuracies[inside]
    on_front = front(costs, accuracies)
    widths = np.diff(np.append(costs[on_front], highest_cost))
    return float((widths * (accuracies[on_front] - lowest_accuracy)).sum())


def table_points(
    table: EvaluationTable, cost: CostTable | PeakMemory, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a table's true front on the search split.

    Args:
        table: The table.
        cost: The cost that is traded against accuracy.
        allowed: Which bits each layer may have, bool (L, 8, 8).

    Returns:
        Costs in SI units and accuracies, each float64 (k,), ascending.
    """
    rows = np.flatnonzero(over_rows(table, allowed, np.logical_and))
    costs = costs_of_rows(table, cost)[rows]
    accuracies = table.correct["search"][rows] / table.reference["search"].samples
    on_front = front(costs, accuracies)
    return costs[on_front], accuracies[on_front]
