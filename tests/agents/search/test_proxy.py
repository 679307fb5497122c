import itertools

import numpy as np
import pytest

from agents import make_agent
from agents.search.proxy import group_harms
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.subject import Subject
from quantenv.sensitivity import measure
from tests.agents.searches import make_env
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table


@pytest.mark.parametrize("groups", [None, [[0, 2], [1], [3]]])
def test_harms_of_a_table_are_those_of_its_sensitivity(groups):
    table = synthetic_table(groups=groups)
    env = QuantizationEnv(table, budget=0.6)
    harms = group_harms(env)
    weights = measure(table).weights
    assert harms.shape == (len(table.groups), 8, 8)
    for group, members in enumerate(table.members):
        expected = [sum(weights[layer, bits - 1] for layer in members) for bits in (2, 4, 8)]
        assert harms[group, [1, 3, 7], 7] == pytest.approx(expected)


def test_harms_of_an_additive_table_sum_to_the_increase_of_its_loss():
    """The proxy is exact where harms add up: for every allocation."""
    table = synthetic_table()
    harms = group_harms(QuantizationEnv(table, budget=1.0), "loss")
    base = table.evaluation(table.rows - 1).loss
    for row, actions in enumerate(itertools.product(range(3), repeat=4)):
        total = harms[np.arange(4), np.array([1, 3, 7])[list(actions)], 7].sum()
        assert total == pytest.approx(table.evaluation(row).loss - base, abs=1e-5)


@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_one_number_per_layer_falls_by_four_with_each_bit(decisions):
    env = make_env(decisions=decisions, bits=(2, 4, 6), budget=0.9).unwrapped
    harms = group_harms(env)
    noise = env.evaluator.sensitivity[:, None] * (4.0 ** (3 - np.array([2, 4, 6])) - 4.0 ** (3 - 8))
    expected = np.full((4, 8, 8), np.inf)
    if decisions == "weights":
        expected[:, [1, 3, 5], 7] = noise
    else:
        expected[np.ix_(range(4), [1, 3, 5], [1, 3, 5])] = noise[:, :, None] + noise[:, None, :]
    assert harms == pytest.approx(expected)


@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_bits_that_the_device_lacks_are_closed(decisions):
    env = make_env(
        decisions=decisions, device="bitfusion", pinned="first_last", budget=0.9, bits=(2, 3, 4, 8)
    ).unwrapped
    harms = group_harms(env)
    offered = {(weight, activation) for weight in env.bits for activation in env.bits}
    if decisions == "weights":
        offered = {(bits, 8) for bits in env.bits}
    supported = {tuple(pair) for pair in (np.argwhere(env.device.supports) + 1).tolist()}
    for group in (1, 2):  # the others are pinned
        assert {tuple(pair) for pair in (np.argwhere(np.isfinite(harms[group])) + 1).tolist()} == offered & supported
    assert offered - supported


def test_nothing_is_evaluated():
    env = make_env()
    group_harms(env)
    assert env.unwrapped.evaluations == env.unwrapped.evaluator.calls == 0


def test_what_cannot_be_known_is_refused():
    table = synthetic_table()
    with pytest.raises(QuantenvError, match="Did you mean 'loss'"):
        group_harms(QuantizationEnv(table, budget=0.6), "los")
    with pytest.raises(QuantenvError, match="no task to measure it on"):
        group_harms(make_env(), "kl")
    evaluator = AdditiveEvaluator()
    bare = QuantizationEnv(None, evaluator=evaluator, observation="haq")
    with pytest.raises(QuantenvError, match="no task to measure it on"):
        group_harms(bare)


def test_options_of_unknown_harm_are_refused(monkeypatch):
    table = synthetic_table()
    measured = measure(table)
    assert np.isnan(measured.weights[:, 2]).all()  # the table holds no 3 bits
    env = make_env(bits=(2, 3, 4)).unwrapped
    monkeypatch.setattr(Subject, "measurable", True)
    monkeypatch.setattr(Subject, "measure", lambda self, kind, offered: measured)
    with pytest.raises(QuantenvError, match="layer 'layer0' is not known for all bits on offer by 'loss'"):
        group_harms(env, "loss")
    assert np.isfinite(group_harms(make_env(bits=(2, 4, 8)), "loss")).sum() == 4 * 3


def test_agents_say_what_their_sensitivities_cost():
    table = synthetic_table()
    env = QuantizationEnv(table, budget=0.6)
    cost = measure(table).evaluations
    assert cost > 0
    for name in ("ilp", "ilp-top", "greedy-up", "greedy-down", "annealing", "surrogate"):
        assert make_agent(name, env).equivalent_evaluations == cost, name
    assert make_agent("uniform", env).equivalent_evaluations == 0
