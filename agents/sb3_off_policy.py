"""What off-policy agents from Stable-Baselines3 need to act here; the algorithms are used as they come.

They choose bits by numbers in [0, 1] (`ContinuousBits`). SB3 stores each transition at once: before the reward of the
episode is known, and with the proposed action, which masks and projection may have changed. Here updates wait for the
end of the episode, and at that end replay is put right, before anything of it is drawn.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.base import Log, finite_reward, problem_size, vectorize
from agents.checkpoint import load_modules, save_modules
from agents.sb3 import Forward, LockstepVecEnv, PrivateRandomness
from quantenv.env.wrappers import ContinuousBits


class OffPolicyAgent(ABC):
    """An agent of SB3 that learns from replay of whole episodes.

    Its config has ``updates_per_episode``, ``replay_episodes`` and ``warmup_episodes``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        self.env = env
        self.config = config or self.config_class()
        _, _, self._length = problem_size(env)
        self._episodes = 0
        self._bits = ContinuousBits(env)
        self._randomness = PrivateRandomness()
        with self._randomness.active():
            self.model = self._build(
                ContinuousVecEnv(LockstepVecEnv(vectorize(env, 1), seed), self._bits),
                train_freq=(self._length, "step"),
                gradient_steps=self.config.updates_per_episode,
                learning_starts=self.config.warmup_episodes * self._length,
                replay_buffer_class=WholeEpisodes,
                buffer_size=self.config.replay_episodes * self._length,
                gamma=1.0,
                seed=seed,
                device="cpu",
            )

    @abstractmethod
    def _build(self, envs: VecEnv, **options: Any) -> Any:
        """Makes SB3's algorithm with these options and its own."""

    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes; after the warm-up, each one is followed by updates."""
        self.model.set_logger(Logger(folder=None, output_formats=[Forward(log)]))
        with self._randomness.active():
            self.model.learn(
                evaluations * self._length,
                callback=_FiniteRewards(),
                log_interval=1,
                reset_num_timesteps=not self._episodes,
            )
        self._episodes += evaluations
        # SB3 writes an update's metrics after the next episode, and none followed the last update.
        self.model.logger.dump()

    def start_episode(self) -> None:  # noqa: B027, for there is nothing to forget
        """Does nothing: the actor has no memory."""

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Rounds the actor's mean to an action; one that is not allowed is the environment's to correct."""
        action, _ = self.model.predict(observation, deterministic=True)
        return self._bits.action(action)

    def save(self, path: Path) -> None:
        """Writes actor and critics (SB3's own archive holds pickled objects, which loading would run)."""
        save_modules(path, self.name, {"policy": self.model.policy})

    def load(self, path: Path) -> None:
        """Reads actor and critics; see `agents.base.Agent` for the errors."""
        load_modules(path, self.name, {"policy": self.model.policy})


class ContinuousVecEnv(VecEnvWrapper):
    """Copies in lock-step whose bits are chosen by numbers in [0, 1]."""

    def __init__(self, envs: LockstepVecEnv, bits: ContinuousBits) -> None:
        """Wraps copies.

        Args:
            envs: The copies.
            bits: Tells which number means which bits.
        """
        super().__init__(envs, action_space=bits.action_space)
        self._bits = bits

    def reset(self) -> np.ndarray:
        """Begins an episode in every copy; observations float32 (B, F)."""
        return self.venv.reset()  # type: ignore[return-value]

    def step_async(self, actions: np.ndarray) -> None:
        """Passes numbers, float32 (B, D), on as actions."""
        self.venv.step_async(np.array([self._bits.action(each) for each in actions]))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Takes a decision in every copy; the infos of the last one hold the numbers of what was executed, (T, D)."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "executed_actions" in info:
                info["executed_numbers"] = self._bits.continuous(info["executed_actions"])
        return observations, rewards, dones, infos  # type: ignore[return-value]


class WholeEpisodes(ReplayBuffer):
    """Replay that is put right at the end of each episode, for one environment.

    Every step gets the action that was executed and, as its return, the final reward: the only one, undiscounted. So
    critics regress on returns. They need no targets of their own making, which in a few hundred episodes pass the
    reward back by a few decisions only. What is drawn has mean 0 and unit spread over all that is held, so that
    neither the level nor the scale of the reward matters.
    """

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores a step; the last one of an episode completes them all."""
        super().add(obs, next_obs, action, reward, done, infos)
        if not done.all():
            return
        executed = infos[0]["executed_numbers"]  # (T, D)
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        steps = np.arange(self.pos - len(executed), self.pos)  # the buffer holds whole episodes: at its end, from -T
        self.actions[steps, 0] = 2 * (executed - low) / (high - low) - 1  # SB3's replay holds actions in [-1, 1]
        self.rewards[steps] = reward
        self.dones[steps] = 1
        held = (self.rewards if self.full else self.rewards[: self.pos]).astype(np.float64)
        self._mean, self._spread = float(held.mean()), float(held.std()) + 1e-8

    def _normalize_reward(self, reward: np.ndarray, env: Any = None) -> np.ndarray:  # type: ignore[override]
        return (reward - self._mean) / self._spread


class _FiniteRewards(BaseCallback):
    """Checks rewards."""

    def _on_step(self) -> bool:
        for reward in self.locals["rewards"]:
            finite_reward(reward)
        return True
