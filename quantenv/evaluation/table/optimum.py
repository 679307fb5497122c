"""The exact optimum of a table under budgets, by looking at every row."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantenv.core.allocation import Allocation
from quantenv.core.errors import InfeasibleBudgetError, unknown_name
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.hardware import CostTable, PeakMemory
from quantenv.hardware.budget import TOLERANCE, Budget
from quantenv.hardware.quantities import format_quantity


@dataclass(frozen=True)
class Choice:
    """One row of a table."""

    index: int
    """The row."""
    allocation: Allocation
    """Its allocation."""
    evaluation: Evaluation
    """Its evaluation on the split that was searched."""
    costs: Mapping[str, float]
    """Its cost in every metric, SI units."""


@dataclass(frozen=True)
class Optimum:
    """The best feasible row of a table, and what it was chosen from."""

    split: str
    """The split that was searched."""
    best: Choice
    """Most samples correct, then least loss, then the first row."""
    uniform: Choice | None
    """The best feasible row that gives all layers the same bits, if there is one."""
    rows: int
    """Rows of the table that the caller allowed."""
    feasible: int
    """Those of them that meet every budget."""
    tied: int
    """Feasible rows with as many samples correct as the best one, itself included."""


def standard_error(evaluation: Evaluation) -> float:
    """Returns the binomial standard error sqrt(p (1 - p) / n) of an accuracy p measured on n samples."""
    p = evaluation.accuracy
    return math.sqrt(p * (1 - p) / evaluation.samples)


def optimum(
    table: EvaluationTable,
    budgets: Sequence[Budget],
    costs: Mapping[str, CostTable | PeakMemory],
    split: str = "search",
    allowed: np.ndarray | None = None,
) -> Optimum:
    """Finds a table's best feasible allocation, exactly.

    Args:
        table: The table.
        budgets: Upper bounds, met up to `TOLERANCE`; none leaves every row feasible.
        costs: Cost tables of the table's layers, by metric.
        split: The split to search. Searching ``test`` tells how good an allocation could be there; to report a
            choice, choose on ``search``.
        allowed: Which bits each layer may have, bool (L, 8, 8); None allows all.

    Returns:
        The optimum.

    Raises:
        InfeasibleBudgetError: If no row is allowed and meets the budgets.
        QuantenvError: If the table does not hold the split.
    """
    if split not in table.reference:
        raise unknown_name(f"split of table {table.name!r}:", split, table.reference)
    usable = np.ones(table.rows, dtype=bool)
    if allowed is not None:
        usable = over_rows(table, allowed, np.logical_and)
    if not usable.any():
        raise InfeasibleBudgetError(f"Table {table.name!r} holds none of the bits that are allowed: allow others.")
    feasible, least = usable.copy(), []
    for budget in budgets:
        spent = costs_of_rows(table, costs[budget.metric])
        least.append(format_quantity(budget.metric, float(spent[usable].min())))
        feasible &= spent / budget.limit <= 1 + TOLERANCE
    if not feasible.any():
        limits = ", ".join(f"{budget.metric} <= {format_quantity(budget.metric, budget.limit)}" for budget in budgets)
        raise InfeasibleBudgetError(
            f"No allocation of table {table.name!r} meets {limits}; the cheapest cost {', '.join(least)}: raise the "
            "budget."
        )

    def choose(candidates: np.ndarray) -> Choice:
        """Picks the best of the rows whose indices are given, ascending."""
        correct, loss = table.correct[split][candidates], table.loss[split][candidates]
        index = int(candidates[np.lexsort((loss, -correct.astype(np.int64)))[0]])
        allocation = table.allocation(index)
        bits = allocation.weight_bits, allocation.activation_bits
        return Choice(
            index, allocation, table.evaluation(index, split), {name: cost.cost(*bits) for name, cost in costs.items()}
        )

    candidates = np.flatnonzero(feasible)
    best = choose(candidates)
    uniform = sum(table.strides) * np.arange(len(table.bits))
    uniform = uniform[feasible[uniform]]
    return Optimum(
        split=split,
        best=best,
        uniform=choose(uniform) if len(uniform) else None,
        rows=int(usable.sum()),
        feasible=len(candidates),
        tied=int((table.correct[split][candidates] == best.evaluation.correct).sum()),
    )


def costs_of_rows(table: EvaluationTable, cost: CostTable | PeakMemory) -> np.ndarray:
    """Returns what the allocation of every row of a table costs, SI units, float64 (rows,).

    All rows have the same activation bits, so that what does not depend on a layer's weights is the same in all.
    """
    if isinstance(cost, PeakMemory):
        activations = np.full((cost.layers, 2), table.activation_bits)
        return np.full(table.rows, cost.costs(activations))
    together: float = sum(term.values[table.activation_bits - 1] for term in cost.terms)
    return over_rows(table, cost.values, np.add) + together


def over_rows(table: EvaluationTable, values: np.ndarray, combine: Callable[..., np.ndarray]) -> np.ndarray:
    """Combines something that layers have at their bits, for every row of a table.

    Args:
        table: The table.
        values: What each layer has, (L, 8, 8) = [layer, weight bits - 1, activation bits - 1].
        combine: An associative ufunc, such as `numpy.add`.

    Returns:
        ``combine`` over the layers of each row's allocation, (rows,).
    """
    options = values[:, np.array(table.bits) - 1, table.activation_bits - 1]  # (L, B)
    per_group = [combine.reduce(options[list(layers)], axis=0) for layers in table.members]  # type: ignore[attr-defined]
    return functools.reduce(lambda rows, group: combine.outer(rows, group).ravel(), per_group)  # type: ignore[attr-defined]
