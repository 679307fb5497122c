"""What every agent promises, checked on each of them."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from agents.base import BUILT_IN
from quantenv.core.errors import QuantenvError
from tests.agents.searches import LEARNERS, SMALL, agent, make_env, play_greedily, search

#: All but those that search no synthetic task: they need a network.
AGENTS = tuple(name for name in BUILT_IN if name != "differentiable")

#: Agents that draw nothing: every seed gives the same search.
SEEDLESS = ("greedy-down", "greedy-up", "ilp", "ilp-top", "uniform")

#: Episodes between updates, of agents that log where they update.
UPDATED = {
    name: SMALL[name].get("episodes_per_update", 4)
    for name in ("a2c", "ppo", "ppo-warm", "recurrent-ppo", "reinforce", "reinforce-warm", "trpo")
}

#: Agents that know no masks, and propose what the environment then corrects.
UNMASKED = ("a2c", "ddpg", "recurrent-ppo", "sac", "td3", "trpo")


@pytest.mark.parametrize("name", AGENTS)
def test_same_seed_same_search_and_other_seed_another(name):
    first, again, other = (search(name, 14, seed=seed) for seed in (3, 3, 4))
    assert first.bits == again.bits
    assert first.rewards == again.rewards
    assert first.taken == again.taken
    assert (first.bits == other.bits) == (name in SEEDLESS)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("evaluations", [16, 19])
def test_no_metric_has_two_values_at_one_evaluation(name, evaluations):
    env = make_env()
    logged = []
    agent(name, env).learn(evaluations, lambda metrics: logged.extend((key, len(env.rewards)) for key in metrics))
    assert len(logged) == len(set(logged))
    if name in UPDATED:
        size = UPDATED[name]
        assert sorted({at for _, at in logged} - {0}) == list(range(size, evaluations + 1, size))


@pytest.mark.parametrize("name", AGENTS)
def test_search_does_not_depend_on_global_random_states(name):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = search(name, 10)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert search(name, 10).bits == first.bits


@pytest.mark.parametrize("name", AGENTS)
def test_global_random_states_are_left_alone(name, tmp_path):
    def states():
        numpy_state = np.random.get_state()  # noqa: NPY002
        return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().tolist()

    before = states()
    env = make_env()
    player = agent(name, env)
    assert states() == before
    player.learn(10, lambda metrics: None)
    assert states() == before
    play_greedily(env, player)
    player.save(tmp_path / "agent")
    player.load(tmp_path / "agent")
    assert states() == before


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("evaluations", [1, 3, 4, 9])
def test_learns_for_exactly_as_many_evaluations(name, evaluations):
    env = make_env()
    player = agent(name, env)
    player.learn(evaluations, lambda metrics: None)
    assert env.unwrapped.evaluations == evaluations == len(env.rewards)
    player.learn(5, lambda metrics: None)
    assert env.unwrapped.evaluations == evaluations + 5


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(
    ("constraint", "decisions"),
    [
        *itertools.product(("mask", "project"), ("weights", "weights+activations", "joint")),
        ("reject", "weights"),
        ("lagrangian", "joint"),
    ],
)
def test_learns_under_every_constraint_and_decision(name, constraint, decisions):
    metric, budget = ("size", 0.4) if decisions == "weights" else ("bops", 0.3)
    options = {"constraint": constraint, "decisions": decisions, "metric": metric, "budget": budget}
    env = make_env(count=3, bits=(2, 3, 4, 6, 8), **options)
    player = agent(name, env)
    logged = []
    player.learn(9, logged.append)
    assert len(env.rewards) == 9
    assert logged
    for metrics in logged:
        assert all(key.startswith("train/") and math.isfinite(value) for key, value in metrics.items())
    assert play_greedily(env, player) == play_greedily(env, player)


@pytest.mark.parametrize("name", [name for name in AGENTS if name not in UNMASKED])
def test_masked_actions_are_never_proposed(name):
    env = make_env(budget=0.3)
    player = agent(name, env)
    player.learn(12, lambda metrics: None)
    play_greedily(env, player)
    taken = list(itertools.chain.from_iterable(env.taken))
    assert any(not mask.all() for mask in env.masks)
    assert all(mask[action] for mask, action in zip(env.masks, taken, strict=True))


@pytest.mark.parametrize("name", LEARNERS)
def test_infinite_reward_is_refused(name):
    env = make_env(constraint="reject", constraint_options={"infeasible_reward": -math.inf}, budget=0.3)
    with pytest.raises(QuantenvError, match=r"reward -inf.*set a finite infeasible_reward"):
        agent(name, env).learn(30, lambda metrics: None)


@pytest.mark.parametrize("name", AGENTS)
def test_learning_prints_nothing(name, capfd):
    search(name, 9)
    assert capfd.readouterr() == ("", "")
