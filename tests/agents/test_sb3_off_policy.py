"""SAC and TD3: what their replay holds, and that the critics learn from it."""

import numpy as np
import pytest
import torch

from agents.sac import SACAgent, SACConfig
from agents.td3 import TD3Agent, TD3Config
from quantenv.env.wrappers import ContinuousBits
from tests.agents.searches import make_env

KINDS = {"sac": (SACAgent, SACConfig), "td3": (TD3Agent, TD3Config)}


def _agent(name, env, **options):
    kind, config = KINDS[name]
    return kind(env, 0, config(**{"hidden": 8, "batch_size": 8, "warmup_episodes": 3, **options}))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("constraint", ["project", "mask"])
@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_replay_holds_the_executed_actions_and_the_final_reward(name, constraint, decisions):
    env = make_env(constraint=constraint, decisions=decisions, budget=0.3)
    player = _agent(name, env)
    player.learn(8, lambda metrics: None)
    executed = [info["executed_actions"] for info in env.infos]
    assert [actions.tolist() for actions in executed] != env.taken
    wrapper, replay = ContinuousBits(env), player.model.replay_buffer
    steps = sum(map(len, executed))
    assert replay.pos == steps
    stored = (replay.actions[:steps, 0] + 1) / 2
    np.testing.assert_allclose(stored, np.concatenate([wrapper.continuous(each) for each in executed]), atol=1e-6)
    np.testing.assert_allclose(replay.rewards[:steps, 0], np.repeat(env.rewards, len(executed[0])), rtol=1e-6)
    assert replay.dones[:steps].all()


@pytest.mark.parametrize("name", KINDS)
def test_replay_overwrites_whole_episodes(name):
    env = make_env(budget=1.0)
    player = _agent(name, env, replay_episodes=3, warmup_episodes=10)
    player.learn(5, lambda metrics: None)
    replay = player.model.replay_buffer
    latest = [env.rewards[3], env.rewards[4], env.rewards[2]]
    np.testing.assert_allclose(replay.rewards[:, 0], np.repeat(latest, 4), rtol=1e-6)
    drawn = replay.sample(4000).rewards.numpy()
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_updates_follow_each_episode_after_the_warm_up(name):
    logged = []
    _agent(name, make_env(), updates_per_episode=3).learn(7, logged.append)
    assert [metrics["train/n_updates"] for metrics in logged] == [3, 6, 9, 12]


@pytest.mark.parametrize("name", KINDS)
def test_warm_up_is_uniform_and_seeded(name):
    env = make_env(budget=1.0)
    _agent(name, env, warmup_episodes=300).learn(300, lambda metrics: None)
    shares = np.bincount(np.concatenate(env.taken), minlength=7) / 1200
    np.testing.assert_allclose(shares, 1 / 7, atol=0.04)


@pytest.mark.parametrize("name", KINDS)
def test_critics_learn_the_normalised_return(name):
    env = make_env(count=2, budget=1.0)
    player = _agent(
        name, env, hidden=32, batch_size=64, learning_rate=1e-2, warmup_episodes=60, updates_per_episode=300
    )
    player.learn(61, lambda metrics: None)
    replay = player.model.replay_buffer
    last = np.arange(1, 120, 2)  # the last of two steps, where the observation tells the first one's bits
    with torch.no_grad():
        observations, actions = (torch.as_tensor(part[last, 0]) for part in (replay.observations, replay.actions))
        values = player.model.critic(observations, actions)[0][:, 0].numpy()
    returns = (np.array(env.rewards[:60]) - replay._mean) / replay._spread
    assert np.corrcoef(values, returns)[0, 1] > 0.9
