import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.optimum import optimum, standard_error
from quantenv.hardware import Budget, compile_costs, load_device, parse_budgets
from tests.synthetic_table import synthetic_table

PLAIN = [synthetic_table(seed=seed, samples=20) for seed in range(3)]  # few samples: many ties
TIED = [synthetic_table(5, groups=[[0, 2], [1, 4], [3]], seed=seed, samples=50) for seed in range(3)]


def costs_of(table):
    return compile_costs(table.layers, table.activations, load_device("generic"))


def brute_force(table, budgets, costs, split, allowed=None):
    """Rows that are allowed, those of them that are feasible, and the best of these, one row at a time."""
    usable, feasible, best = [], [], None
    for row in range(table.rows):
        allocation = table.allocation(row)
        bits = allocation.weight_bits, allocation.activation_bits
        if allowed is not None and not all(allowed[i, w - 1, a - 1] for i, (w, a) in enumerate(allocation.bits)):
            continue
        usable.append(row)
        if any(costs[budget.metric].cost(*bits) > budget.limit * (1 + 1e-9) for budget in budgets):
            continue
        feasible.append(row)
        rank = (-int(table.correct[split][row]), float(table.loss[split][row]), row)
        best = rank if best is None or rank < best else best
    return usable, feasible, best


@settings(max_examples=60, deadline=None)
@given(
    table=st.sampled_from([*PLAIN, *TIED]),
    budget=st.floats(0.25, 1.0),
    latency=st.floats(0.4, 1.0),
    split=st.sampled_from(["search", "test"]),
    closed=st.integers(0, 4),
)
def test_it_is_what_brute_force_finds(table, budget, latency, split, closed):
    costs = costs_of(table)
    budgets = parse_budgets(("size", "latency"), (budget, latency), costs)
    allowed = np.ones((len(table.layers), 8, 8), dtype=bool)
    if closed < len(table.layers):
        allowed[closed, 1] = False
    usable, feasible, best = brute_force(table, budgets, costs, split, allowed)
    if best is None:
        with pytest.raises(InfeasibleBudgetError):
            optimum(table, budgets, costs, split, allowed)
        return
    found = optimum(table, budgets, costs, split, allowed)
    assert (found.split, found.rows, found.feasible) == (split, len(usable), len(feasible))
    assert found.best.index == best[2]
    assert found.best.allocation == table.allocation(best[2])
    assert found.best.evaluation == table.evaluation(best[2], split)
    assert found.tied == sum(table.correct[split][row] == -best[0] for row in feasible)
    for metric, cost in costs.items():
        allocation = found.best.allocation
        assert found.best.costs[metric] == cost.cost(allocation.weight_bits, allocation.activation_bits)
    uniform = [row for row in feasible if len(set(table.allocation(row).weight_bits)) == 1]
    if not uniform:
        assert found.uniform is None
    else:
        assert found.uniform is not None
        ranks = [(-int(table.correct[split][r]), float(table.loss[split][r]), r) for r in uniform]
        assert found.uniform.index == min(ranks)[2]


def test_ties_in_accuracy_go_to_the_least_loss_then_the_first_row():
    correct = np.full(81, 5, dtype=np.uint16)
    correct[[7, 30, 31, 60]] = 9
    loss = np.full(81, 0.1)
    loss[[7, 30, 31, 60]] = [0.5, 0.4, 0.4, 0.9]
    table = synthetic_table(
        samples=10, correct={"search": correct, "test": correct}, loss={"search": loss, "test": loss}
    )
    found = optimum(table, (), costs_of(table))
    assert (found.best.index, found.tied, found.feasible) == (30, 4, 81)


def test_a_budget_of_exactly_the_cheapest_allocation_is_met():
    table = PLAIN[0]
    costs = costs_of(table)
    least = costs["size"].cost([2] * 4, [8] * 4)
    found = optimum(table, [Budget("size", least)], costs)
    assert (found.best.index, found.feasible) == (0, 1)
    with pytest.raises(InfeasibleBudgetError, match=r"the cheapest cost .*: raise the budget"):
        optimum(table, [Budget("size", least * 0.99)], costs)
    with pytest.raises(InfeasibleBudgetError, match="none of the bits"):
        optimum(table, (), costs, allowed=np.zeros((4, 8, 8), dtype=bool))


def test_unknown_splits_are_named():
    with pytest.raises(QuantenvError, match="Unknown split of table 'synthetic_table': 'train'"):
        optimum(PLAIN[0], (), costs_of(PLAIN[0]), "train")


def test_the_standard_error_is_that_of_a_proportion():
    rng = np.random.default_rng(0)
    accuracies = rng.binomial(400, 0.9, 20_000) / 400
    assert standard_error(Evaluation(360, 400, 0.3)) == pytest.approx(accuracies.std(), rel=0.03)
    assert standard_error(Evaluation(400, 400, 0.0)) == 0
    assert standard_error(Evaluation(1, 2, 0.0)) == math.sqrt(1 / 8)
