import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import OptimizeResult, milp

import agents.search.ilp
from agents.search.ilp import lagrangian, multipliers, solve
from agents.search.knapsack import Knapsack
from experiments.studies.bench_ilp import network_problem
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from tests.agents.search.knapsacks import enumerate_all, feasible_harms, knapsacks, scale

HAWQ = json.loads((Path(__file__).parents[2] / "data" / "hawq_v3_resnet18.json").read_text())


@settings(deadline=None, max_examples=100)
@given(knapsacks() | knapsacks(together=True))
def test_optimum_is_that_of_trying_everything(problem):
    harms = feasible_harms(problem)
    if not len(harms):
        with pytest.raises(InfeasibleBudgetError):
            solve(problem)
        return
    found = solve(problem)
    assert found.objective == pytest.approx(harms[0], rel=1e-9, abs=1e-9 * scale(problem))
    assert found.proven
    layers = np.arange(len(found.options))
    assert found.objective == math.fsum(problem.harms[layers, found.options])
    together = sum(term.of(found.options) for term in problem.terms)
    assert found.costs == pytest.approx(problem.costs[:, layers, found.options].sum(axis=1) + together)
    assert (found.costs <= problem.limits + 1e-12 * np.abs(problem.limits)).all()
    assert all(len(set(found.options[list(group)])) == 1 for group in problem.tied)
    assert all(found.options[layer] == option for layer, option in problem.pinned.items())


@settings(deadline=None, max_examples=50)
@given(knapsacks())
def test_lagrangian_bounds_every_solution_by_its_options(problem):
    duals = multipliers(problem.groups)
    if duals is None:
        assert not len(feasible_harms(problem))
        return
    bound, raised = lagrangian(problem.groups, duals)
    choices, harms, costs = enumerate_all(problem)
    feasible = (costs <= problem.limits[:, None]).all(axis=0)
    firsts = [members[0] for members in problem.groups.members]
    for choice, harm in zip(choices[feasible][:, firsts], harms[feasible], strict=True):
        # What all its options raise the bound by, together, is no more than its harm.
        assert bound + raised[np.arange(len(firsts)), choice].sum() <= harm + 1e-9 * scale(problem) * len(firsts)


@pytest.mark.parametrize("number", range(9))
def test_hawq_v3_published_configurations(number):
    problem, names = HAWQ["problems"][number], HAWQ["layers"]
    harms, costs = (
        np.array([columns[str(bits)] for bits in HAWQ["bits"]]).T
        for columns in (HAWQ["perturbation"], HAWQ["cost"][problem["cost"]])
    )
    tied = [[names.index(name) for name in group] for group in HAWQ["equal_bits"]]
    found = solve(Knapsack(harms, costs[None], np.array([problem["budget"]]), tied=tied))
    assert [HAWQ["bits"][option] for option in found.options] == problem["published_bits"]
    assert found.objective == pytest.approx(problem["published_objective"], rel=1e-9)


@pytest.mark.parametrize("over", [1e-11, 1e-9, 1e-7])
def test_limits_are_kept_where_the_solver_cannot_see_the_difference(over):
    """The better option breaks the limit by less than HiGHS's tolerances."""
    problem = Knapsack([[0.0, 1.0]] * 2, [[[1.0, 0.5], [1.0 + over, 0.5]]], [2.0])
    found = solve(problem)
    assert sorted(found.options) == [0, 1]
    assert found.costs[0] <= 2.0


def test_a_limit_just_below_a_sum_of_costs():
    """HiGHS 1.12 with its presolve answers 3 above the least harm and calls that optimal."""
    harms = [[3.0, 0.0], [-2.0, -1.0], [1.0, 0.0], [0.0, -2.0], [np.inf, 0.0]]
    costs = [[[1.0, 3.0], [3.0, 2.0], [1.0, 2.0], [2.0, 0.0], [0.0, 2.0]]]
    found = solve(Knapsack(harms, costs, [9 - 1e-8]))
    assert found.objective == -2.0
    assert found.options.tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_harms_and_costs_of_any_unit(size):
    rng = np.random.default_rng(0)
    harms, costs = rng.random((12, 5)), rng.random((2, 12, 5))
    plain = solve(Knapsack(harms, costs, [5.0, 5.0]))
    scaled = solve(Knapsack(harms * size, costs * [[[size]], [[1 / size]]], [5.0 * size, 5.0 / size]))
    assert scaled.options.tolist() == plain.options.tolist()


def test_small_differences_beside_large_ones_count():
    """One layer's harm is a billion times another's, and both are decided exactly."""
    harms = [[1e9, 0.0], [2.0, 0.0], [1.0, 0.0]]
    found = solve(Knapsack(harms, [[[1, 2]] * 3], [5]))
    assert found.options.tolist() == [1, 1, 0]
    assert found.objective == 1.0


def test_many_layers_options_and_budgets_against_the_linear_relaxation():
    problem = network_problem()
    found = solve(problem)
    assert found.proven
    assert (found.costs <= problem.limits).all()
    duals = multipliers(problem.groups)
    bound, _ = lagrangian(problem.groups, duals)
    assert (duals >= 0).all()
    assert duals.any()
    # Dropping to the relaxation changes at most one layer for each budget: duality leaves a small gap.
    assert bound <= found.objective <= 1.02 * bound


def test_no_output_of_the_solver(capfd):
    for seed in range(8):
        solve(network_problem(seed, layers=20))
    assert capfd.readouterr() == ("", "")


def test_without_budgets_each_layer_takes_its_least_harm():
    found = solve(Knapsack([[3.0, 1.0], [np.inf, 2.0]], np.zeros((0, 2, 2)), []))
    assert (found.options.tolist(), found.objective, found.proven) == ([1, 1], 3.0, True)
    assert solve(Knapsack([[3.0, 1.0]], [[[1.0, 2.0]]], [np.inf])).options.tolist() == [1]


def test_time_limit_leaves_a_feasible_solution_with_its_bound(monkeypatch):
    problem = network_problem(layers=20)
    best = solve(problem, time_limit=1000.0)
    assert best.proven

    def out_of_time(*arguments, **options):
        assert options["options"]["time_limit"] <= 1000.0
        found = milp(*arguments, **options)
        found.status = 1
        return found

    monkeypatch.setattr(agents.search.ilp, "milp", out_of_time)
    found = solve(problem, time_limit=1000.0)
    assert (found.costs <= problem.limits).all()
    assert found.bound <= best.objective <= found.objective
    assert not found.proven


def test_no_solution_within_the_time_limit_is_said(monkeypatch):
    nothing = OptimizeResult(x=None, status=1, message="Time limit reached.")
    monkeypatch.setattr(agents.search.ilp, "milp", lambda *arguments, **options: nothing)
    with pytest.raises(QuantenvError, match=r"within 0\.5 s: allow more time"):
        solve(network_problem(layers=5), time_limit=0.5)


def test_infeasible_budget_names_the_least_feasible_one():
    problem = Knapsack([[0.0, 1.0]] * 3, [[[4.0, 1.1]] * 3], [3.0], metrics=("size",))
    with pytest.raises(InfeasibleBudgetError, match=r"size <= 3 \(the least feasible is 3\.3\)") as refusal:
        solve(problem)
    (least,) = re.findall(r"feasible is ([\d.]+)", str(refusal.value))
    assert solve(replace(problem, limits=np.array([float(least)]))).options.tolist() == [1, 1, 1]


def test_budgets_that_exclude_each_other_name_what_each_would_have_to_be():
    costs = [[[4.0, 1.0]] * 2, [[1.0, 4.0]] * 2]
    problem = Knapsack([[0.0, 0.0]] * 2, costs, [4.0, 4.0], metrics=("size", "latency"))
    with pytest.raises(InfeasibleBudgetError, match=r"together.*size 8 or latency 8"):
        solve(problem)
    for limits in ([5.0, 5.0], [8.0, 4.0]):
        solve(replace(problem, limits=np.array(limits)))


@settings(deadline=None, max_examples=60)
@given(knapsacks(budgets=2))
def test_named_least_budgets_are_the_least_feasible_ones(problem):
    limits = problem.limits - 0.05 * np.abs(problem.limits)
    problem = replace(problem, limits=limits)
    try:
        solve(problem)
    except InfeasibleBudgetError as error:
        message = str(error)
    else:
        return
    _, _, costs = enumerate_all(problem)
    for index, least in re.findall(r"cost (\d) <= \S+ \(the least feasible is (\S+)\)", message):
        assert float(least) == pytest.approx(costs[int(index)].min(), rel=1e-9)
    if "together" in message:
        hint = message.partition("the least feasible is")[2]
        for index, least in re.findall(r"cost (\d) (\S+?)(?= or|\. )", hint):
            others = np.arange(2) != int(index)
            met = (costs[others] <= limits[others, None]).all(axis=0)
            assert float(least) == pytest.approx(costs[int(index), met].min(), rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harms": [[0.0, np.nan]]}, "must be numbers"),
        ({"harms": [[0.0, -np.inf]]}, "must be numbers"),
        ({"harms": [0.0, 1.0]}, "have shapes"),
        ({"costs": [[1.0, 2.0]]}, "have shapes"),
        ({"costs": [[[1.0, np.inf]]]}, "must be finite"),
        ({"limits": [np.nan]}, "must be numbers"),
        ({"limits": [1.0, 2.0]}, "have shapes"),
        ({"metrics": ("size", "latency")}, "names 2 metrics"),
        ({"tied": [[0, 1]]}, "tied is"),
        ({"tied": [[]]}, "tied is"),
        ({"tied": [[0], [0]]}, "tied is"),
        ({"pinned": {1: 0}}, "Layer 1 is pinned"),
        ({"pinned": {0: 2}}, "pinned at option 2"),
        ({"harms": [[np.inf, np.inf]]}, "No option is left"),
        ({"harms": [[0.0, np.inf]], "pinned": {0: 1}}, "No option is left"),
    ],
)
def test_malformed_problems_are_refused(changes, message):
    sound = {"harms": [[0.0, 1.0]], "costs": [[[2.0, 1.0]]], "limits": [1.0]}
    solve(Knapsack(**sound))
    with pytest.raises(QuantenvError, match=message):
        Knapsack(**{**sound, **changes})


def test_tied_layers_pinned_apart_are_refused():
    with pytest.raises(QuantenvError, match="pinned alike"):
        Knapsack([[0.0, 1.0]] * 2, np.ones((1, 2, 2)), [9.0], tied=[[0, 1]], pinned={0: 0, 1: 1})
