"""Stable-Baselines3 and sb3-contrib as their users write them: by id, with their own vectorised environments."""

import gymnasium
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from quantenv.envs.wrappers import ContinuousBits
from tests.clients.plain import DECISIONS, ID, replay


def network():
    """Options of every agent; they write into theirs."""
    return {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}


class Ends(BaseCallback):
    """Keeps the last infos, and how often an action was corrected."""

    def __init__(self):
        super().__init__()
        self.infos, self.corrected = [], 0

    def _on_step(self):
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            self.corrected += int(info["corrected"])
            if done:
                self.infos.append(info)
        return True


def check(ends, episodes):
    """Every episode is whole, and worth what a plain loop says."""
    assert len(ends.infos) == episodes
    for info in ends.infos:
        assert info["episode"]["l"] == DECISIONS
        assert not info["TimeLimit.truncated"]
        assert info["episode"]["r"] == pytest.approx(
            replay(info["executed_actions"])[1], abs=1e-6
        )  # rounded by Monitor


def test_ppo_by_an_id_that_names_the_module():
    envs = make_vec_env("quantenv:quantenv/DigitsTable-v0", n_envs=4, seed=0)
    ends = Ends()
    PPO("MlpPolicy", envs, n_steps=16, batch_size=32, n_epochs=1, **network()).learn(256, callback=ends)
    check(ends, 256 // DECISIONS)
    assert ends.corrected > 0  # it knows no masks


def test_maskable_ppo_takes_no_closed_action():
    envs = make_vec_env(ID, n_envs=4, seed=0)
    ends = Ends()
    model = MaskablePPO("MlpPolicy", envs, n_steps=16, batch_size=32, n_epochs=1, **network())
    model.learn(256, callback=ends)
    check(ends, 256 // DECISIONS)
    assert ends.corrected == 0
    observations, taken = envs.reset(), []
    for _ in range(DECISIONS):
        actions, _ = model.predict(observations, action_masks=get_action_masks(envs), deterministic=True)
        observations, rewards, dones, infos = envs.step(actions)
        taken.append(actions[0])
    assert dones.all()
    assert infos[0]["executed_actions"].tolist() == [int(action) for action in taken]
    assert rewards[0] == pytest.approx(replay(taken)[1])


def test_off_policy_agents_and_normalisation():
    env = gymnasium.make(ID)
    ends = Ends()
    DQN("MlpPolicy", env, learning_starts=32, buffer_size=1000, **network()).learn(160, callback=ends)
    check(ends, 160 // DECISIONS)
    envs = VecNormalize(make_vec_env(lambda: ContinuousBits(gymnasium.make(ID)), n_envs=2, seed=0), norm_reward=False)
    ends = Ends()
    SAC("MlpPolicy", envs, learning_starts=32, train_freq=8, buffer_size=1000, **network()).learn(160, callback=ends)
    check(ends, 160 // DECISIONS)


def test_evaluation_and_processes():
    envs = make_vec_env(ID, n_envs=2, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        model = PPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, **network())
        returns, lengths = evaluate_policy(model, envs, n_eval_episodes=6, return_episode_rewards=True)
    finally:
        envs.close()
    env = gymnasium.make(ID)
    observation, _ = env.reset()
    taken = []
    for _ in range(DECISIONS):
        taken.append(int(model.predict(observation, deterministic=True)[0]))
        observation, *_ = env.step(taken[-1])
    assert lengths == [DECISIONS] * 6
    np.testing.assert_allclose(returns, replay(taken)[1], atol=1e-6)
