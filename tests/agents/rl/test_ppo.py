import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from agents.rl.ppo import PPOAgent, PPOConfig
from tests.agents.searches import make_env

SMALL = PPOConfig(hidden=8, episodes_per_update=4, episodes_per_minibatch=2, epochs=2)


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [("mask", MaskablePPO), ("project", PPO), ("reject", PPO), ("lagrangian", PPO)],
)
def test_masks_are_used_where_the_constraint_is_a_mask(constraint, kind):
    assert type(PPOAgent(make_env(constraint=constraint), 0, SMALL).model) is kind


def _rollouts(agent):
    """Captures each rollout just before SB3 learns from it: (observations, actions, log-probabilities)."""
    captured, train = [], agent.model.train

    def capture():
        buffer = agent.model.rollout_buffer
        policy = agent.model.policy
        observations, actions = buffer.observations.copy(), buffer.actions[..., 0].copy()  # (T, B, F), (T, B)
        with torch.no_grad():
            distribution = policy.get_distribution(torch.as_tensor(observations.reshape(-1, observations.shape[-1])))
            expected = distribution.log_prob(torch.as_tensor(actions.reshape(-1))).numpy().reshape(actions.shape)
        parts = (actions.astype(int), buffer.log_probs.copy(), expected, buffer.rewards.copy())
        captured.append(tuple(part.T for part in parts))  # (B, T) each
        train()

    agent.model.train = capture
    return captured


def test_rollouts_hold_the_executed_actions_with_their_log_probabilities():
    env = make_env(constraint="project", budget=0.3)
    agent = PPOAgent(env, 0, SMALL)
    captured = _rollouts(agent)
    agent.learn(12, lambda metrics: None)
    executed = [info["executed_actions"].tolist() for info in env.infos]
    assert executed != env.taken
    assert len(captured) == 3
    actions, log_probs, expected, rewards = (np.concatenate(part) for part in zip(*captured, strict=True))
    assert actions.tolist() == executed
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
    np.testing.assert_allclose(rewards[:, -1], env.rewards, rtol=1e-5)
    assert not rewards[:, :-1].any()


@pytest.mark.parametrize(("evaluations", "updates"), [(3, 0), (4, 1), (7, 1), (8, 2), (9, 2)])
def test_every_full_rollout_is_learned_from(evaluations, updates):
    agent = PPOAgent(make_env(), 0, SMALL)
    captured = _rollouts(agent)
    logged = []
    agent.learn(evaluations, logged.append)
    assert len(captured) == updates == len(logged)


def test_metrics_are_sb3s_training_metrics():
    logged = []
    PPOAgent(make_env(), 0, SMALL).learn(8, logged.append)
    assert {"train/policy_gradient_loss", "train/value_loss", "train/entropy_loss"} < logged[-1].keys()
    assert [metrics["train/n_updates"] for metrics in logged] == [2, 4]


def test_two_searches_in_turn_are_each_what_they_are_alone():
    def alone(seed):
        env = make_env()
        PPOAgent(env, seed, SMALL).learn(8, lambda metrics: None)
        return env.bits

    envs = make_env(), make_env()
    pair = [PPOAgent(env, seed, SMALL) for seed, env in enumerate(envs)]
    for agent in (*pair, *pair):
        agent.learn(4, lambda metrics: None)
    assert envs[0].bits[:4] == alone(0)[:4]
    assert envs[1].bits[:4] == alone(1)[:4]
    assert envs[0].bits != envs[1].bits
