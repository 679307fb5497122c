import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agents.rl.ddpg import DDPGAgent, DDPGConfig, Replay
from quantenv.envs.wrappers import ContinuousBits
from tests.agents.searches import make_env


def _agent(env, seed=0, **options):
    return DDPGAgent(env, seed, DDPGConfig(**{"hidden": 16, "batch_size": 8, **options}))


def test_defaults_are_haqs():
    """mit-han-lab/haq, rl_quantize.py: the defaults of its arguments; lib/rl/ddpg.py: moving_alpha."""
    assert DDPGConfig() == DDPGConfig(
        hidden=300,
        actor_learning_rate=1e-4,
        critic_learning_rate=1e-3,
        tau=0.01,
        gamma=1.0,
        batch_size=64,
        replay_episodes=128,
        warmup_episodes=20,
        episodes_per_batch=1,
        steps_per_update=1,
        noise=0.5,
        noise_decay=0.99,
        baseline_rate=0.5,
    )


@pytest.mark.parametrize("constraint", ["project", "mask"])
@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_replay_holds_the_executed_actions_not_the_proposed_ones(constraint, decisions):
    env = make_env(constraint=constraint, decisions=decisions, budget=0.3)
    agent = _agent(env, warmup_episodes=5)
    agent.learn(8, lambda metrics: None)
    executed = [info["executed_actions"] for info in env.infos]
    assert [actions.tolist() for actions in executed] != env.taken
    wrapper = ContinuousBits(env)
    stored = agent.replay.actions[: agent.replay.added]
    np.testing.assert_array_equal(stored, np.concatenate([wrapper.continuous(actions) for actions in executed]))
    assert [wrapper.action(action) for action in stored] == np.concatenate(executed).tolist()


def test_every_step_gets_the_final_reward_and_only_the_last_one_ends():
    env = make_env()
    agent = _agent(env, warmup_episodes=100)
    agent.learn(6, lambda metrics: None)
    steps = agent.replay.added
    assert steps == 6 * 4
    np.testing.assert_allclose(agent.replay.rewards[:steps], np.repeat(env.rewards, 4), rtol=1e-6)
    np.testing.assert_array_equal(agent.replay.continues[:steps], np.tile([1, 1, 1, 0], 6))
    inner = np.arange(steps) % 4 != 3
    following = agent.replay.next_observations[:steps][inner]
    np.testing.assert_array_equal(following, agent.replay.observations[:steps][np.roll(inner, 1)])


@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_episodes_side_by_side_are_kept_one_after_the_other(decisions):
    env = make_env(constraint="project", decisions=decisions, budget=0.3)
    agent = _agent(env, warmup_episodes=3, episodes_per_batch=4)
    agent.learn(10, lambda metrics: None)  # in batches of 4, 4 and 2
    assert len(env.infos) == 10
    wrapper, added = ContinuousBits(env), agent.replay.added
    executed = np.concatenate([wrapper.continuous(info["executed_actions"]) for info in env.infos])
    np.testing.assert_array_equal(agent.replay.actions[:added], executed)
    steps = added // 10
    np.testing.assert_allclose(agent.replay.rewards[:added], np.repeat(env.rewards, steps), rtol=1e-6)
    ended = np.arange(added) % steps == steps - 1
    np.testing.assert_array_equal(agent.replay.continues[:added] == 0, ended)
    following = agent.replay.next_observations[:added][~ended]
    np.testing.assert_array_equal(following, agent.replay.observations[:added][np.roll(~ended, 1)])


def test_no_update_during_the_warm_up():
    logged = []
    _agent(make_env(), warmup_episodes=5).learn(8, logged.append)
    assert len(logged) == 3
    noise = [metrics["train/noise"] for metrics in logged]
    np.testing.assert_allclose(noise, [0.5 * 0.99**episode for episode in (1, 2, 3)])


def test_warm_up_is_uniform():
    agent = _agent(make_env())
    draws = agent._explore(np.zeros((2000, 1), np.float32))[:, 0]
    assert stats.kstest(draws, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("mean", "noise"), [(0.0, 0.5), (0.3, 0.2), (1.0, 0.05)])
def test_exploration_is_a_truncated_normal(mean, noise):
    agent = _agent(make_env(), noise=noise, warmup_episodes=0)
    agent._greedy = lambda observations: np.full((len(observations), 1), mean, np.float32)
    draws = agent._explore(np.zeros((2000, 1), np.float32))[:, 0]
    expected = stats.truncnorm(-mean / noise, (1 - mean) / noise, loc=mean, scale=noise)
    assert stats.kstest(draws, expected.cdf).pvalue > 0.01


def test_targets_follow_slowly():
    env = make_env()
    agent = _agent(env, warmup_episodes=2, tau=0.25)
    agent.learn(2, lambda metrics: None)
    before = [p.clone() for p in agent.critic_target.parameters()]
    agent._update()
    for old, new, source in zip(before, agent.critic_target.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * source)


class _Rising(torch.nn.Module):
    """A critic that expects more of more bits, everywhere."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, observations, actions):
        return self.slope * actions.sum(-1)


def test_actor_stays_within_the_open_options_though_the_critic_points_beyond():
    env = make_env(budget=0.3)
    agent = _agent(env, warmup_episodes=20, actor_learning_rate=3e-3, hidden=64)
    agent.learn(20, lambda metrics: None)
    agent.critic, agent.critic_target = _Rising(), _Rising()
    for _ in range(600):
        agent._update()
    added = agent.replay.added
    highest = agent.replay.open[:added, 1, 0]
    proposed = agent.actor(torch.as_tensor(agent.replay.observations[:added])).detach().numpy()[:, 0]
    assert highest.min() < 0.5 < highest.max()
    np.testing.assert_allclose(proposed, highest, atol=0.15)
    assert np.corrcoef(proposed, highest)[0, 1] > 0.95


def test_critic_learns_the_return_of_a_known_problem():
    """With gamma 1 and the final reward on each step, Q before the last of T steps tends to (R - baseline)."""
    env = make_env(count=2)
    agent = _agent(env, warmup_episodes=40, critic_learning_rate=1e-2, hidden=32, batch_size=64, baseline_rate=0.0)
    agent.learn(40, lambda metrics: None)
    agent._baseline = 0.0
    for _ in range(400):
        agent._update()
    last = agent.replay.continues[:80] == 0
    observations = torch.as_tensor(agent.replay.observations[:80][last])
    values = agent.critic(observations, torch.as_tensor(agent.replay.actions[:80][last])).detach().numpy()
    rewards = agent.replay.rewards[:80][last]
    assert np.abs(values - rewards).mean() < 0.3 * np.abs(rewards - rewards.mean()).mean()


@given(size=st.integers(1, 7), added=st.integers(1, 20))
def test_replay_keeps_the_latest(size, added):
    replay = Replay(size, 1, 1)
    for number in range(added):
        state, following = ((np.array([at]), np.zeros((2, 1))) for at in (number, number + 1))
        replay.add(state, np.array([0.5]), float(number), following, False)
    kept = set(range(max(0, added - size), added))
    observations, _, _, rewards, following, _, continues = replay.sample(200, np.random.default_rng(0))
    assert set(rewards.tolist()) <= kept
    assert set(replay.rewards[: min(added, size)].tolist()) == kept
    assert torch.equal(observations[:, 0] + 1, following[:, 0])
    assert continues.min() == 1
    assert math.isclose(replay.added, added)
