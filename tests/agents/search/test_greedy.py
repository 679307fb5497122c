import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.search.choices import Choices, harm_of
from agents.search.greedy import GreedyDownAgent, GreedyUpAgent, ascend, descend
from agents.search.problem import Problem
from quantenv.envs.environment import QuantizationEnv
from tests.agents.searches import Recorder, make_env
from tests.synthetic_table import synthetic_table


def _by_hand_down(harms, sizes, limit):
    """Weights of one budget, convex harms: one option at a time, the classic way."""
    options = np.full(len(sizes), harms.shape[1] - 1)
    while sizes[np.arange(len(sizes)), options].sum() > limit:
        needed = sizes[np.arange(len(sizes)), options].sum() - limit
        ratios = {}
        for layer, option in enumerate(options):
            for lower in range(option):
                saved = min(sizes[layer, option] - sizes[layer, lower], needed)
                ratios[layer, lower] = (harms[layer, lower] - harms[layer, option]) / saved
        layer, lower = min(ratios, key=lambda key: ratios[key])
        options[layer] = lower
    return options.tolist()


def _by_hand_up(harms, sizes, limit):
    options = np.zeros(len(sizes), dtype=int)
    rows = np.arange(len(sizes))
    while True:
        room = limit - sizes[rows, options].sum()
        ratios = {}
        for layer, option in enumerate(options):
            for higher in range(option + 1, harms.shape[1]):
                added = sizes[layer, higher] - sizes[layer, option]
                if added <= room and harms[layer, higher] < harms[layer, option]:
                    ratios[layer, higher] = (harms[layer, option] - harms[layer, higher]) / added
        if not ratios:
            return options.tolist()
        layer, higher = max(ratios, key=lambda key: ratios[key])
        options[layer] = higher


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.4, 0.55, 0.7, 0.9]))
def test_both_directions_are_the_greedy_rule(seed, budget):
    env = make_env(count=5, problem=seed % 7, bits=(2, 3, 4, 6, 8), budget=budget).unwrapped
    choices = Choices(Problem(env))
    harms = np.sort(np.random.default_rng(seed).random(choices.open.shape), axis=1)[:, ::-1]
    sizes = env.tables["size"].values[:, np.array(env.bits) - 1, 7]
    limit = env.budgets[0].limit
    assert descend(choices, harms).tolist() == _by_hand_down(harms, sizes, limit)
    assert ascend(choices, harms).tolist() == _by_hand_up(harms, sizes, limit)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["joint", "weights+activations"]))
def test_answers_meet_every_budget_and_no_single_step_up_is_left(seed, decisions):
    env = make_env(count=3, bits=(2, 4, 8), decisions=decisions, metric=["size", "bops"], budget="0.5,0.3")
    choices = Choices(Problem(env))
    harms = np.random.default_rng(seed).random(choices.open.shape)  # not even falling with the bits
    down, up = descend(choices, harms), ascend(choices, harms)
    assert choices.feasible(np.stack([down, up])).all()
    steps = choices.neighbours(up)
    assert (harm_of(harms, steps[choices.feasible(steps)]) >= harm_of(harms, up[None])).all()


@pytest.mark.parametrize("kind", [GreedyDownAgent, GreedyUpAgent])
@pytest.mark.parametrize("budget", [0.3, 0.4, 0.5, 0.7])
def test_one_answer_of_a_table_near_its_optimum(kind, budget):
    table = synthetic_table(4, bits=(2, 4, 6, 8))
    env = Recorder(QuantizationEnv(table, budget=budget))
    agent = kind(env)
    agent.learn(3, lambda metrics: None)
    assert env.bits == [env.bits[0]] * 3
    assert agent.best.feasible
    sizes = env.unwrapped.tables["size"].values
    losses = [
        table.evaluation(table.index(table.allocation(row))).loss
        for row, bits in enumerate(itertools.product(table.bits, repeat=4))
        if sizes[np.arange(4), np.array(bits) - 1, 7].sum() <= env.unwrapped.budgets[0].limit
    ]
    ranked = sorted(losses)
    assert agent.best.loss <= ranked[len(ranked) // 4]


@pytest.mark.parametrize("kind", [GreedyDownAgent, GreedyUpAgent])
def test_a_budget_that_binds_nothing_leaves_all_bits(kind):
    env = make_env(budget=1.0)
    kind(env).learn(1, lambda metrics: None)
    assert env.bits == [[[8, 8]] * 4]
