"""What observations show of layers is measured when somebody reads them, through the environment's evaluator."""

import dataclasses

import gymnasium
import numpy as np
import pytest

from agents import make_agent
from quantenv.envs import shown_sensitivity
from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.observations import sensitivity_feature
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.sensitivity import Settings, layer_sensitivity
from quantenv.sensitivity import divergence as measuring
from quantenv.tasks import get_task
from tests.digits import digits_under
from tests.envs.synthetic_env import highest, make_env, play
from tests.synthetic_table import synthetic_table

SEARCHING = ("annealing", "greedy-up", "ilp", "random", "surrogate", "uniform")


@pytest.fixture
def task():
    """Digits under a scheme that does not ship with sensitivities."""
    return digits_under("linear+bias")


@pytest.fixture
def measured(monkeypatch):
    """What is measured for observations."""
    seen = []
    original = measuring.all_logits
    monkeypatch.setattr(measuring, "all_logits", lambda *arguments: seen.append(arguments) or original(*arguments))
    layer_sensitivity.cache_clear()
    return seen


def expected_evaluations(task):
    samples = len(task.splits["search"])
    return (len(task.layers) + 1) * min(Settings.images, samples) / samples


def test_what_ships_is_not_measured_again_and_counted_all_the_same(measured):
    task = get_task("digits")
    env = gymnasium.make("quantenv/Digits-v0", task=task, evaluator="ptq", store="off")
    _, info = env.reset(seed=0)
    assert info["measured_evaluations"] == expected_evaluations(task)
    assert not measured
    evaluator = PTQEvaluator(task)
    np.testing.assert_allclose(layer_sensitivity(evaluator), measuring.measured_sensitivity(evaluator), rtol=1e-9)


def test_making_an_environment_measures_nothing_and_its_first_observation_does(task, measured):
    env = gymnasium.make("quantenv/Digits-v0", task=task, store="off")
    assert not measured
    assert env.unwrapped.measured_evaluations == 0
    observation, info = env.reset(seed=0)
    calls = len(measured)
    assert calls > 0
    assert info["measured_evaluations"] == env.unwrapped.measured_evaluations == expected_evaluations(task)
    again, same = env.reset(seed=0)
    assert len(measured) == calls
    np.testing.assert_array_equal(observation, again)
    assert same["measured_evaluations"] == info["measured_evaluations"]
    ends = play(env, highest)[2][-1]
    assert ends["evaluations"] == 1
    assert ends["measured_evaluations"] == expected_evaluations(task)


@pytest.mark.parametrize("name", SEARCHING)
def test_agents_that_read_no_observations_measure_none(task, measured, name, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path))
    env = QuantizationEnv(task, store="off", bits=(4, 8), budget=0.7)
    make_agent(name, env).learn(3, lambda metrics: None)
    assert not measured
    assert env.measured_evaluations == 0
    assert env.evaluations == 3


def test_agents_that_read_them_do(task, measured):
    env = QuantizationEnv(task, store="off", bits=(4, 8), budget=0.7)
    agent = make_agent("reinforce", env)
    assert not measured
    agent.learn(2, lambda metrics: None)
    assert env.measured_evaluations == expected_evaluations(task)


def test_unread_observations_lack_only_the_sensitivity(task):
    env = QuantizationEnv(task, store="off")
    column = env.feature_names.index("sensitivity")
    with env.unread():
        unread, info = env.reset()
    assert info["measured_evaluations"] == 0
    read, _ = env.reset()
    assert unread[column] == 0
    np.testing.assert_array_equal(np.delete(unread, column), np.delete(read, column))
    harms = sensitivity_feature(layer_sensitivity(env.evaluator))
    assert play(env, highest)[0][0][column] == pytest.approx(harms[0])


def test_copies_measure_together_and_only_what_is_read(task, measured):
    env = QuantizationEnv(task, store="off")
    copies = env.vectorize(3)
    column = env.feature_names.index("sensitivity")
    with env.unread():
        copies.reset()
    assert not measured
    observations, infos = copies.reset()
    assert (observations[:, column] == observations[0, column]).all()
    assert (infos["measured_evaluations"] == expected_evaluations(task)).all()
    assert env.measured_evaluations == expected_evaluations(task)


def test_they_are_those_of_the_environment_s_evaluator(task, measured):
    corrected = dataclasses.replace(task, scheme="linear+bias")
    env = QuantizationEnv(corrected, store="off", evaluator="ptq-float")
    column = env.feature_names.index("sensitivity")
    shown = [observation[column] for observation in play(env, highest)[0][:-1]]
    assert {id(evaluator) for evaluator, *_ in measured} == {id(env.evaluator)}
    expected = sensitivity_feature(layer_sensitivity(PTQEvaluator(corrected, "float")))
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_what_a_table_was_told_counts_too():
    table = synthetic_table(4)
    env = QuantizationEnv(table, budget=0.6)
    assert env.measured_evaluations == 0
    _, info = env.reset()
    assert info["measured_evaluations"] == env.measured_evaluations == 4 + 1
    copies = env.vectorize(2)
    assert copies.reset()[1]["measured_evaluations"].tolist() == [5, 5]
    with env.unread():
        assert copies.reset()[1]["measured_evaluations"].tolist() == [0, 0]


def test_of_given_and_of_hidden_sensitivities_nothing_counts(task):
    for env in (make_env(), QuantizationEnv(task, observation="haq", store="off")):
        _, info = env.reset()
        assert info["measured_evaluations"] == env.measured_evaluations == 0


def test_budgets_that_change_share_what_was_measured(task, measured):
    env = BudgetSweepEnv(task, levels=3, store="off")
    assert not measured
    env.reset(options={"level": 0})
    calls = len(measured)
    env.reset(options={"level": 2})
    assert len(measured) == calls
    assert env.measured_evaluations == expected_evaluations(task)
    assert isinstance(env._shown, shown_sensitivity.ShownSensitivity)
