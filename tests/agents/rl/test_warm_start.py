"""The warm-started learners: cloned from the proxy's exact solution, which costs no counted evaluation."""

import itertools

import numpy as np
import pytest
import torch

from agents.base import make_agent
from agents.search.proxy import group_harms
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from tests.agents.searches import SMALL, agent, make_env, play_greedily

WARM = ("ppo-warm", "reinforce-warm")


def best_of_proxy(env):
    """Finds the proxy's best feasible weight bits by trying them all."""
    inner = env.unwrapped
    harms, (budget,) = group_harms(env), inner.budgets
    best, found = np.inf, None
    for actions in itertools.product(range(len(inner.bits)), repeat=len(inner.layers)):
        bits = np.array(inner.bits)[list(actions)]
        harm = harms[np.arange(len(bits)), bits - 1, 7].sum()
        if inner.tables["size"].values[np.arange(len(bits)), bits - 1, 7].sum() <= budget.limit and harm < best:
            best, found = harm, bits.tolist()
    return found


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize("constraint", ["mask", "project"])
def test_policy_begins_at_the_proxys_solution_before_any_evaluation(name, constraint):
    env = make_env(constraint=constraint)
    player = make_agent(name, env, 0, {**SMALL[name], "hidden": 32, "cloning_steps": 150})
    logged = []
    player.learn(0, logged.append)
    assert env.unwrapped.evaluations == 0 == len(env.rewards)
    assert [weights for weights, _ in play_greedily(env, player)] == best_of_proxy(env)
    assert [sorted(metrics) for metrics in logged] == [["train/cloning_loss", "train/sensitivity_evaluations"]]


@pytest.mark.parametrize("name", WARM)
def test_cloned_policy_has_the_asked_confidence_and_shares_the_rest(name):
    env = make_env(budget=0.5)
    options = {"hidden": 64, "cloning_steps": 400, "confidence": 0.6}
    player = make_agent(name, env, 0, {**SMALL[name], **options})
    player.learn(0, lambda metrics: None)
    observations, masks, targets = (torch.as_tensor(part) for part in player._warm_start.demonstrations())
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    assert not targets[~masks].any()
    assert set(targets.max(-1).values.numpy().ravel()) <= {np.float32(0.6), np.float32(1.0)}
    with torch.no_grad():
        cloned = player._log_probabilities(observations, masks).exp()
    own = cloned[0], targets[0]  # the first episode is the solution's own
    assert (own[0] - own[1]).abs().max() < 0.15


@pytest.mark.parametrize("name", WARM)
def test_it_is_cloned_once_and_not_over_loaded_weights(name, tmp_path):
    env = make_env()
    player = agent(name, env)
    logged = []
    player.learn(4, logged.append)
    player.learn(4, logged.append)
    assert sum("train/cloning_loss" in metrics for metrics in logged) == 1
    player.save(tmp_path / "agent")
    fresh, logged = agent(name, env, seed=1), []
    fresh.load(tmp_path / "agent")
    fresh.learn(4, logged.append)
    assert not any("train/cloning_loss" in metrics for metrics in logged)


@pytest.mark.parametrize("name", WARM)
def test_the_sensitivity_s_cost_is_said(name):
    env = QuantizationEnv("digits_table", bits=None, budget=0.5)
    player, logged = agent(name, env), []
    assert player.equivalent_evaluations == 0
    player.learn(4, logged.append)
    expected = env.unwrapped.subject.measure().evaluations
    assert player.equivalent_evaluations == expected == logged[0]["train/sensitivity_evaluations"]


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize("options", [{"confidence": 1.5}, {"cloning_steps": -1}, {"hidden": 0}])
def test_wrong_options_are_refused(name, options):
    with pytest.raises(QuantenvError, match=f"{next(iter(options))} must be"):
        make_agent(name, make_env(), 0, options)
