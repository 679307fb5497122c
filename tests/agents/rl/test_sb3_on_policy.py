"""A2C, TRPO and recurrent PPO know no masks: what they learn from must be what the environment executed."""

from unittest import mock

import numpy as np
import pytest
import torch
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from agents.base import agent_class
from quantenv.core.errors import QuantenvError
from tests.agents.searches import agent, make_env, play_greedily

UNMASKED = ("a2c", "recurrent-ppo", "trpo")


def _rollouts(player):
    """Captures rollouts before SB3 learns from them: actions, log-probabilities, expected ones and rewards, (B, T)."""
    captured, train = [], player.model.train

    def capture():
        buffer = player.model.rollout_buffer
        actions = buffer.actions[..., 0].astype(int).T  # (B, T)
        expected = _replayed(player.model.policy, buffer.observations.swapaxes(0, 1), actions)
        captured.append((actions, buffer.log_probs.T.copy(), expected, buffer.rewards.T.copy()))
        train()

    player.model.train = capture
    return captured


@torch.no_grad()
def _replayed(policy, observations, actions):
    """Log-probabilities (B, T) of actions, each episode played through the policy by itself."""
    rows = []
    for episode, taken in zip(observations, actions, strict=True):
        state, row = None, []
        for step, (observation, action) in enumerate(zip(episode, taken, strict=True)):
            seen = torch.as_tensor(observation)[None]
            if isinstance(policy, RecurrentActorCriticPolicy):
                state = state or tuple(torch.zeros(policy.lstm_hidden_state_shape) for _ in range(2))
                distribution, state = policy.get_distribution(seen, state, torch.tensor([float(step == 0)]))
            else:
                distribution = policy.get_distribution(seen)
            row.append(distribution.log_prob(torch.tensor([action])).item())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("name", UNMASKED)
@pytest.mark.parametrize("constraint", ["mask", "project"])
def test_rollouts_hold_the_executed_actions_with_their_log_probabilities(name, constraint):
    env = make_env(constraint=constraint, budget=0.3)
    player = agent(name, env)
    captured = _rollouts(player)
    player.learn(12, lambda metrics: None)
    executed = [info["executed_actions"].tolist() for info in env.infos]
    assert executed != env.taken
    assert len(captured) == 3
    actions, log_probs, expected, rewards = (np.concatenate(part) for part in zip(*captured, strict=True))
    assert actions.tolist() == executed
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
    np.testing.assert_allclose(rewards[:, -1], env.rewards, rtol=1e-5)
    assert not rewards[:, :-1].any()


@pytest.mark.parametrize("name", UNMASKED)
@pytest.mark.parametrize(("evaluations", "updates"), [(3, 0), (4, 1), (9, 2)])
def test_every_full_rollout_is_learned_from_and_logged(name, evaluations, updates):
    player = agent(name, make_env())
    captured, logged = _rollouts(player), []
    player.learn(evaluations, logged.append)
    assert len(captured) == updates == len(logged)
    assert all("train/value_loss" in metrics for metrics in logged)


def test_recurrent_policy_remembers_within_an_episode_and_forgets_between():
    env = make_env()
    player = agent("recurrent-ppo", env)
    player.learn(8, lambda metrics: None)
    first = play_greedily(env, player)
    observation, info = env.reset()
    player.start_episode()
    player.act(observation, info["action_mask"])
    remembered = player._state
    player.act(observation, info["action_mask"])
    assert not np.array_equal(remembered[0], player._state[0])
    assert play_greedily(env, player) == first


def test_recurrent_updates_see_every_episode_as_it_was_acted():
    player = agent("recurrent-ppo", make_env(budget=0.3))
    updates = []

    def check():
        buffer, policy = player.model.rollout_buffer, player.model.policy
        (batch,) = buffer.get(player.model.batch_size)
        assert batch.mask.all()
        assert batch.actions[:, 0].tolist() == buffer.actions[..., 0].T.reshape(-1).tolist()
        with torch.no_grad():
            values, log_probs, _ = policy.evaluate_actions(
                batch.observations, batch.actions[:, 0].long(), batch.lstm_states, batch.episode_starts
            )
        np.testing.assert_allclose(log_probs, buffer.log_probs.T.reshape(-1), atol=1e-5)
        np.testing.assert_allclose(values[:, 0], buffer.values.T.reshape(-1), atol=1e-5)
        # Where sb3-contrib cuts no episode, its own batch of the same rollout has the same sequences.
        with mock.patch("numpy.random.randint", return_value=0):
            (own,) = RecurrentRolloutBuffer.get(buffer)
        buffer.generator_ready = False
        for name in ("observations", "actions", "old_values", "old_log_prob", "advantages", "returns", "mask"):
            np.testing.assert_array_equal(getattr(own, name), getattr(batch, name))
        updates.append(batch)

    player.model.train = check
    player.learn(12, lambda metrics: None)
    assert len(updates) == 3


@pytest.mark.parametrize("name", ["a2c", "trpo"])
def test_a_single_episode_cannot_be_normalised(name):
    with pytest.raises(QuantenvError, match="episodes_per_update must be at least 2"):
        agent_class(name).config_class(episodes_per_update=1)
