"""Problems and choices against the environment that they describe: by playing, and by brute force."""

import itertools

import numpy as np
import pytest

from agents.search.choices import Choices, harm_of
from agents.search.greedy import ascend, descend
from agents.search.ilp import solve
from agents.search.next_best import next_best
from agents.search.problem import Problem
from agents.search.repair import Repair
from quantenv.core.errors import InfeasibleBudgetError
from tests.agents.searches import make_env
from tests.envs.synthetic_env import play
from tests.envs.test_costs import make as graph_env

CASES = {
    "weights": {"metric": "size", "budget": 0.4},
    "joint": {"decisions": "joint", "metric": "bops", "budget": 0.3},
    "both": {"decisions": "weights+activations", "metric": "bops", "budget": 0.3},
    "two budgets": {"decisions": "joint", "metric": ["size", "bops"], "budget": "0.5,0.3"},
    "pinned": {"pinned": "first_last", "budget": 0.85},
    "tied": {"tied": [["layer0", "layer2"]], "budget": 0.4},
    "device": {"device": "bitfusion", "bits": (2, 4, 8), "decisions": "joint", "metric": "latency", "budget": 0.5},
}


def _problem(case):
    env = make_env(**{"count": 3, "bits": (2, 4, 5, 8), "constraint": "reject", **CASES[case]})
    problem = Problem(env)
    return env, problem, Choices(problem)


@pytest.mark.parametrize("case", CASES)
def test_candidates_cost_what_the_environment_says(case):
    env, problem, choices = _problem(case)
    generator = np.random.default_rng(0)
    actions = generator.integers(problem.n_actions, size=(60, problem.n_decisions))
    executed, shares, feasible = [], [], []
    for each in actions:
        info = play(env, each.tolist())[2][-1]
        executed.append(info["executed_actions"])
        costs = [info[f"cost_{budget.metric}"] / budget.limit for budget in env.unwrapped.budgets]
        shares.append(costs)
        feasible.append(bool(info["feasible"]))
    executed = np.array(executed)
    assert problem.legal(executed).all()
    np.testing.assert_allclose(problem.loads(executed), shares, rtol=1e-12)
    assert problem.feasible(executed).tolist() == feasible
    assert 0 < sum(feasible) < 60
    picks = choices.picks(executed)
    np.testing.assert_allclose(choices.loads(picks), shares, rtol=1e-12)
    assert choices.feasible(picks).tolist() == feasible
    assert choices.actions(picks).tolist() == executed.tolist()


def test_what_the_device_lacks_is_not_legal():
    _, problem, choices = _problem("device")
    everything = np.array(list(itertools.product(range(problem.n_actions), repeat=3)))
    legal = problem.legal(everything)
    assert legal.sum() == choices.open.sum(axis=1).prod()
    assert not problem.feasible(everything[~legal]).any()


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_all_open_picks_at_distance_one(case):
    _, _, choices = _problem(case)
    groups, pairs = choices.open.shape
    pick = choices.cheapest()
    expected = {
        (*pick[:group], pair, *pick[group + 1 :])
        for group, pair in itertools.product(range(groups), range(pairs))
        if choices.open[group, pair] and pair != pick[group]
    }
    found = [tuple(each) for each in choices.neighbours(pick).tolist()]
    assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("case", CASES)
def test_cheapest_and_highest(case):
    _, _, choices = _problem(case)
    groups, pairs = choices.open.shape
    everything = np.array(list(itertools.product(range(pairs), repeat=groups)))
    everything = everything[choices.open[np.arange(groups), everything].all(axis=1)]
    totals = choices.loads(everything).sum(axis=1)
    assert choices.loads(choices.cheapest()[None]).sum() == pytest.approx(totals.min())
    highest = choices.pairs[choices.highest()].sum()
    assert highest == choices.pairs[everything].sum(axis=(1, 2)).max()


@pytest.mark.parametrize("case", CASES)
def test_swaps_are_feasible_change_two_groups_at_most_and_reach_everything(case):
    _, _, choices = _problem(case)
    groups, pairs = choices.open.shape
    everything = np.array(list(itertools.product(range(pairs), repeat=groups)))
    everything = everything[choices.feasible(everything)]
    generator = np.random.default_rng(0)
    picks, seen = np.tile(choices.cheapest(), (500, 1)), set()
    for _ in range(30):
        swapped = choices.swaps(picks, generator)
        assert ((swapped != picks).sum(axis=1) <= 2).all()
        assert choices.feasible(swapped).all()
        seen.update(map(tuple, swapped.tolist()))
        picks = swapped
    assert len(seen) > 0.9 * len(everything)


@pytest.mark.parametrize("case", CASES)
def test_harms_of_pairs_add_up_over_groups(case):
    _, problem, choices = _problem(case)
    generator = np.random.default_rng(1)
    harms = generator.random((len(problem.walk.members), 8, 8))
    of_pairs = choices.harms(harms)
    assert np.isinf(of_pairs).tolist() == (~choices.open).tolist()
    groups, pairs = choices.open.shape
    picks = generator.integers(pairs, size=(200, groups))
    picks = picks[choices.open[np.arange(groups), picks].all(axis=1)]
    bits = problem.bits(choices.actions(picks)) - 1  # (k, G, 2)
    of_groups = harms[np.arange(bits.shape[1]), bits[..., 0], bits[..., 1]]
    np.testing.assert_allclose(harm_of(of_pairs, picks), of_groups[:, np.unique(problem.walk.groups)].sum(axis=1))


@pytest.mark.parametrize("case", CASES)
def test_knapsack_has_the_brute_force_solution(case):
    _, problem, choices = _problem(case)
    harms = choices.harms(np.random.default_rng(2).random((len(problem.walk.members), 8, 8)))
    groups, pairs = choices.open.shape
    everything = np.array(list(itertools.product(range(pairs), repeat=groups)))
    everything = everything[choices.feasible(everything)]
    solution = solve(choices.knapsack(harms)).options
    assert choices.feasible(solution[None]).all()
    assert harm_of(harms, solution[None])[0] == pytest.approx(harm_of(harms, everything).min())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mode", ["joint", "weights+activations"])
def test_what_several_layers_read_is_in_every_answer(mode, seed):
    """By brute force, under budgets of energy, with terms, and of memory, a maximum."""
    ratio = {"energy": 0.85 + 0.02 * seed, "memory": 1.0 - 0.05 * (seed % 3)}
    try:
        env = graph_env(seed, mode, ratio, count=3, bits=(2, 5, 8))
    except InfeasibleBudgetError:
        env = graph_env(seed, mode, {"energy": 0.95, "memory": 1.0}, count=3, bits=(2, 5, 8))
    problem = Problem(env)
    choices = Choices(problem)
    groups, pairs = choices.open.shape
    everything = np.array(list(itertools.product(range(pairs), repeat=groups)))
    bits = problem.bits(choices.actions(everything))
    costs = env.network_costs.of(bits)[env.budgeted].T / env.limits
    feasible = (costs <= 1 + 1e-9).all(axis=1)
    np.testing.assert_array_equal(choices.feasible(everything), feasible)
    np.testing.assert_allclose(choices.loads(everything).max(axis=1), costs.max(axis=1), rtol=1e-12)
    harms = choices.harms(np.random.default_rng(seed).random((groups, 8, 8)))
    best = np.sort(harm_of(harms, everything[feasible]))
    found = next_best(choices.knapsack(harms), 40)
    assert [each.objective for each in found] == pytest.approx(best[:40].tolist())
    assert choices.feasible(np.array([each.options for each in found])).all()
    for answer in (descend(choices, harms), ascend(choices, harms), choices.cheapest()):
        assert choices.feasible(answer[None]).all()
    repaired = Repair(choices)(everything, np.random.default_rng(0))
    assert choices.feasible(repaired).all()
    assert (repaired[feasible] == everything[feasible]).all()
