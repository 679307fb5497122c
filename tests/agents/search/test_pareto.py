import numpy as np
import pytest
from hypothesis import given, settings

import agents.search.pareto
from agents.search.ilp import solve
from agents.search.knapsack import Knapsack
from agents.search.pareto import front
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from tests.agents.search.knapsacks import enumerate_all, feasible_harms, knapsacks, scale


@settings(deadline=None, max_examples=100)
@given(knapsacks(budgets=1) | knapsacks(budgets=1, together=True))
def test_front_is_that_of_trying_everything(problem):
    if not len(feasible_harms(problem)):
        with pytest.raises(InfeasibleBudgetError):
            front(problem)
        return
    _, harms, (costs,) = enumerate_all(problem)
    limit = problem.limits[0]
    feasible = costs <= limit + 1e-12 * abs(limit)
    harms, costs = harms[feasible], costs[feasible]
    found = front(problem)
    points = np.array([(solution.costs[0], solution.objective) for solution in found])
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) < 0).all()
    same_cost, same_harm = 1e-11 * np.abs(costs).max(), 1e-11 * scale(problem)
    for cost, harm in points:  # each is a solution, and none is better in both
        assert (np.abs(costs - cost) + np.abs(harms - harm) <= same_cost + same_harm).any()
        assert not ((costs <= cost - same_cost) & (harms < harm - same_harm)).any()
    for cost, harm in zip(costs, harms, strict=True):  # and every solution is as good as one of them or worse
        assert ((points[:, 0] <= cost + same_cost) & (points[:, 1] <= harm + same_harm)).any()


def test_front_is_what_the_integer_program_finds_at_every_budget():
    rng = np.random.default_rng(0)
    weight = np.arange(2, 9)
    harms = rng.lognormal(0, 1.5, (15, 1)) * 4.0**-weight
    costs = rng.integers(10, 1000, (15, 1)) * weight
    points = front(Knapsack(harms, costs[None], [np.inf]))
    spent = [point.costs[0] for point in points]
    assert spent[0] == costs.min(axis=1).sum()
    for budget in np.linspace(spent[0], spent[-1], 20):
        found = solve(Knapsack(harms, costs[None], [budget]))
        best = points[np.searchsorted(spent, budget, side="right") - 1]
        assert found.objective == pytest.approx(best.objective, rel=1e-9)


def test_sums_in_another_order_are_no_points_of_their_own():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point, but the same cost."""
    costs = np.array([[0.1, 0.2, 0.3]] * 3)
    points = front(Knapsack(-costs, costs[None], [np.inf]))
    assert [round(point.costs[0], 6) for point in points] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_fronts_of_several_costs_or_beyond_memory_are_refused(monkeypatch):
    with pytest.raises(QuantenvError, match="one cost"):
        front(Knapsack([[0.0, 1.0]], np.ones((2, 1, 2)), [1.0, 1.0]))
    monkeypatch.setattr(agents.search.pareto, "LARGEST", 10)
    rng = np.random.default_rng(0)
    with pytest.raises(QuantenvError, match="more than 10 partial solutions"):
        front(Knapsack(rng.random((8, 4)), rng.random((1, 8, 4)), [np.inf]))
