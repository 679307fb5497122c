import itertools

import numpy as np
import pytest

from agents import make_agent
from agents.baselines.proxy import decision_harms
from quantenv.env.environment import QuantizationEnv
from quantenv.env.subject import Subject
from quantenv.errors import QuantenvError
from quantenv.sensitivity import measure
from tests.agents.searches import make_env
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table


@pytest.mark.parametrize("groups", [None, [[0, 2], [1], [3]]])
def test_harms_of_a_table_are_those_of_its_sensitivity(groups):
    table = synthetic_table(groups=groups)
    env = QuantizationEnv(table, budget=0.6)
    harms = decision_harms(env)
    weights = measure(table).weights
    assert harms.shape == (len(table.groups), 3)
    for decision, members in enumerate(table.members):
        expected = [sum(weights[layer, bits - 1] for layer in members) for bits in (2, 4, 8)]
        assert harms[decision] == pytest.approx(expected)


def test_harms_of_an_additive_table_sum_to_the_increase_of_its_loss():
    """The proxy is exact where harms add up: for every allocation."""
    table = synthetic_table()
    harms = decision_harms(QuantizationEnv(table, budget=1.0), "loss")
    base = table.evaluation(table.rows - 1).loss
    for row, actions in enumerate(itertools.product(range(3), repeat=4)):
        total = harms[np.arange(4), list(actions)].sum()
        assert total == pytest.approx(table.evaluation(row).loss - base, abs=1e-6)


@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_one_number_per_layer_falls_by_four_with_each_bit(decisions):
    env = make_env(decisions=decisions, bits=(2, 4, 6), budget=0.9).unwrapped
    harms = decision_harms(env)
    noise = env.evaluator.sensitivity[:, None] * (4.0 ** (3 - np.array([2, 4, 6])) - 4.0 ** (3 - 8))
    if decisions == "joint":
        expected = (noise[:, :, None] + noise[:, None, :]).reshape(4, 9)
    else:
        expected = noise if decisions == "weights" else np.repeat(noise, 2, axis=0)
    assert harms == pytest.approx(expected)


@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_options_that_the_device_lacks_are_closed_and_pinned_layers_are_no_decisions(decisions):
    env = make_env(
        decisions=decisions, device="bitfusion", pinned="first_last", budget=0.9, bits=(2, 3, 4, 8)
    ).unwrapped
    harms = decision_harms(env)
    assert harms.shape == (2, env.walk.n_actions)
    supported = {tuple(pair) for pair in np.argwhere(env.device.supports) + 1}
    pairs = env.walk.options if decisions == "joint" else np.array([(bits, 8) for bits in env.bits])
    assert (np.isfinite(harms) == [tuple(pair) in supported for pair in pairs.tolist()]).all()
    assert np.isinf(harms).any()


def test_nothing_is_evaluated():
    env = make_env()
    decision_harms(env)
    assert env.unwrapped.evaluations == env.unwrapped.evaluator.calls == 0


def test_what_cannot_be_known_is_refused():
    table = synthetic_table()
    with pytest.raises(QuantenvError, match="Did you mean 'loss'"):
        decision_harms(QuantizationEnv(table, budget=0.6), "los")
    with pytest.raises(QuantenvError, match="no task to measure it on"):
        decision_harms(make_env(), "kl")
    evaluator = AdditiveEvaluator()
    bare = QuantizationEnv(None, evaluator=evaluator, observation="haq")
    with pytest.raises(QuantenvError, match="no task to measure it on"):
        decision_harms(bare)


def test_options_of_unknown_harm_are_refused(monkeypatch):
    table = synthetic_table()
    measured = measure(table)
    assert np.isnan(measured.weights[:, 2]).all()  # the table holds no 3 bits
    env = make_env(bits=(2, 3, 4)).unwrapped
    monkeypatch.setattr(Subject, "measurable", True)
    monkeypatch.setattr(Subject, "measure", lambda self, kind: measured)
    with pytest.raises(QuantenvError, match="layer 'layer0' is not known for all weights options on offer by 'loss'"):
        decision_harms(env, "loss")
    assert np.isfinite(decision_harms(make_env(bits=(2, 4, 8)), "loss")).all()


def test_agents_say_what_their_sensitivities_cost():
    table = synthetic_table()
    env = QuantizationEnv(table, budget=0.6)
    cost = measure(table).evaluations
    assert cost > 0
    for name in ("ilp", "ilp-top", "greedy-up", "greedy-down", "annealing", "surrogate"):
        assert make_agent(name, env).equivalent_evaluations == cost, name
    assert make_agent("uniform", env).equivalent_evaluations == 0
