import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.search.ilp import solve
from agents.search.knapsack import Knapsack
from agents.search.next_best import next_best
from experiments.studies.bench_ilp import network_problem
from quantenv.core.errors import InfeasibleBudgetError
from tests.agents.search.knapsacks import enumerate_all, feasible_harms, knapsacks, scale


@settings(deadline=None, max_examples=100)
@given(knapsacks() | knapsacks(together=True), st.integers(1, 60))
def test_order_is_that_of_trying_everything(problem, count):
    harms = feasible_harms(problem)
    if not len(harms):
        with pytest.raises(InfeasibleBudgetError):
            next_best(problem, count)
        return
    found = next_best(problem, count)
    assert [solution.objective for solution in found] == pytest.approx(
        harms[:count].tolist(), rel=1e-9, abs=1e-9 * scale(problem)
    )
    choices, _, costs = enumerate_all(problem)
    feasible = (costs <= problem.limits[:, None] + 1e-12 * np.abs(problem.limits[:, None])).all(axis=0)
    known = set(map(tuple, choices[feasible].tolist()))
    options = [tuple(solution.options.tolist()) for solution in found]
    assert len(set(options)) == len(options)
    assert set(options) <= known
    assert all(solution.proven for solution in found)


def test_a_network_s_thousand_best_are_a_prefix_of_more():
    problem = network_problem(layers=12)
    fewer, more = next_best(problem, 200), next_best(problem, 1000)
    assert [solution.options.tolist() for solution in fewer] == [solution.options.tolist() for solution in more[:200]]
    assert more[0].objective == pytest.approx(solve(problem).objective, rel=1e-9)
    assert all(solution.proven for solution in more)
    # No exchange of two layers' options that is feasible and better than the last one is missing.
    listed = {tuple(solution.options.tolist()) for solution in more}
    best, groups = more[0].options, problem.groups
    rng = np.random.default_rng(0)
    for _ in range(2000):
        other = best.copy()
        other[rng.choice(12, 2, replace=False)] = rng.integers(0, 49, 2)
        if groups.feasible(other) and groups.harm(other) < more[-1].objective - 1e-9:
            assert tuple(other.tolist()) in listed


def test_a_search_that_is_given_up_still_has_the_optimum_first():
    problem = network_problem(layers=12)
    found = next_best(problem, 300, work=60_000)
    assert found[0].objective == pytest.approx(solve(problem).objective, rel=1e-9)
    assert found[0].proven
    assert len(found) > 1
    assert not found[-1].proven
    objectives = [solution.objective for solution in found]
    assert objectives == sorted(objectives)
    exact = next_best(problem, len(found))
    assert all(found[k].objective >= exact[k].objective - 1e-12 for k in range(len(found)))


def test_many_solutions_of_equal_harm_end_the_search():
    """2**30 solutions are equally good: any 100 of them will do."""
    found = next_best(Knapsack(np.zeros((30, 2)), np.ones((1, 30, 2)), [30.0]), 100)
    assert len({tuple(solution.options.tolist()) for solution in found}) == 100
    assert {solution.objective for solution in found} == {0.0}
