"""SAC and TD3: what their replay holds, and that the critics learn from it."""

import numpy as np
import pytest
import torch

from agents.rl.sac import SACAgent, SACConfig
from agents.rl.td3 import TD3Agent, TD3Config
from quantenv.envs.wrappers import ContinuousBits
from tests.agents.searches import make_env

KINDS = {"sac": (SACAgent, SACConfig), "td3": (TD3Agent, TD3Config)}


def _agent(name, env, **options):
    kind, config = KINDS[name]
    return kind(
        env, 0, config(**{"hidden": 8, "batch_size": 8, "warmup_episodes": 3, "episodes_per_batch": 2, **options})
    )


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
    length = len(executed[0])
    assert replay.pos == 4 * length  # four batches of two
    for copy in (0, 1):
        stored = (replay.actions[: 4 * length, copy] + 1) / 2
        numbers = np.concatenate([wrapper.continuous(each) for each in executed[copy::2]])
        np.testing.assert_allclose(stored, numbers, atol=1e-6)
        rewards = np.repeat(env.rewards[copy::2], length)
        np.testing.assert_allclose(replay.rewards[: 4 * length, copy], rewards, rtol=1e-6)
    assert replay.dones[: 4 * length].all()


@pytest.mark.parametrize("name", KINDS)
def test_replay_overwrites_whole_episodes(name):
    env = make_env(budget=1.0)
    player = _agent(name, env, replay_episodes=6, warmup_episodes=20)
    player.learn(10, lambda metrics: None)
    replay = player.model.replay_buffer
    for copy in (0, 1):
        latest = [env.rewards[at + copy] for at in (6, 8, 4)]
        np.testing.assert_allclose(replay.rewards[:, copy], np.repeat(latest, 4), rtol=1e-6)
    drawn = replay.sample(4000).rewards.numpy()
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_updates_follow_each_batch_after_the_warm_up_that_is_full(name):
    logged, env = [], make_env()
    _agent(name, env, updates_per_batch=3).learn(11, logged.append)
    assert len(env.rewards) == 11
    assert [metrics["train/n_updates"] for metrics in logged] == [3, 6, 9, 12]


@pytest.mark.parametrize("name", KINDS)
def test_episodes_that_fill_no_batch_explore_as_the_others(name):
    env = make_env(budget=1.0)
    _agent(name, env, episodes_per_batch=300, replay_episodes=300, warmup_episodes=300).learn(299, lambda metrics: None)
    shares = np.bincount(np.concatenate(env.taken), minlength=7) / (4 * 299)
    np.testing.assert_allclose(shares, 1 / 7, atol=0.04)  # uniform: the warm-up

    env = make_env(budget=1.0)
    player = _agent(name, env, episodes_per_batch=8, warmup_episodes=1)
    player.learn(15, lambda metrics: None)
    assert len({tuple(actions) for actions in env.taken[8:]}) > 1  # drawn, though the policy is one and the same


@pytest.mark.parametrize("name", KINDS)
def test_warm_up_is_uniform_and_seeded(name):
    env = make_env(budget=1.0)
    noise = {"noise": 0.0} if name == "td3" else {}  # it would be added to the uniform actions, and clipped
    _agent(name, env, warmup_episodes=300, **noise).learn(300, lambda metrics: None)
    shares = np.bincount(np.concatenate(env.taken), minlength=7) / 1200
    np.testing.assert_allclose(shares, 1 / 7, atol=0.04)


@pytest.mark.parametrize("name", KINDS)
def test_critics_learn_the_normalised_return(name):
    env = make_env(count=2, budget=1.0)
    player = _agent(name, env, hidden=32, batch_size=64, learning_rate=1e-2, warmup_episodes=60, updates_per_batch=300)
    player.learn(62, lambda metrics: None)
    replay = player.model.replay_buffer
    last = np.arange(1, 60, 2)  # the last of two steps, where the observation tells the first one's bits
    with torch.no_grad():
        seen, actions = (torch.as_tensor(part[last]).flatten(0, 1) for part in (replay.observations, replay.actions))
        values = player.model.critic(seen, actions)[0][:, 0].numpy()
    returns = (np.array(env.rewards[:60]) - replay._mean) / replay._spread
    assert np.corrcoef(values, returns)[0, 1] > 0.9
