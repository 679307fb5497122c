"""What off-policy agents from Stable-Baselines3 need to act here; the algorithms are used as they come.

They choose bits by numbers in [0, 1] (`ContinuousBits`). SB3 stores each transition at once: before the reward of the
episode is known, and with the proposed action, which masks and projection may have changed. Here updates wait for the
end of a few episodes, which run side by side, and at that end replay is put right, before anything of it is drawn.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.base import Log, checked_seed, counts_evaluations, finite_reward, in_force, problem_size, vectorize
from agents.checkpoint import load_modules, save_modules
from agents.rl.sb3 import Forward, LockstepVecEnv, PrivateRandomness, UpdateCallback
from quantenv.envs.wrappers import ContinuousBits


class OffPolicyAgent(ABC):
    """An agent of SB3 that learns from replay of whole episodes.

    Its config has ``episodes_per_batch``, ``updates_per_batch``, ``replay_episodes`` and ``warmup_episodes``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        self.env = env
        self.config: Any = in_force(config, self.config_class)
        seed = checked_seed(seed)
        _, _, self._length = problem_size(env)
        self._seed = seed
        self._episodes = 0
        self._bits = ContinuousBits(env)
        self._randomness = PrivateRandomness()
        copies: int = self.config.episodes_per_batch
        with self._randomness.active():
            self.model = self._build(
                ContinuousVecEnv(LockstepVecEnv(vectorize(env, copies), seed), self._bits),
                train_freq=(self._length, "step"),
                gradient_steps=self.config.updates_per_batch,
                learning_starts=self.config.warmup_episodes * self._length,
                replay_buffer_class=WholeEpisodes,
                buffer_size=max(1, self.config.replay_episodes // copies) * copies * self._length,
                gamma=1.0,
                seed=seed,
                device="cpu",
            )

    @abstractmethod
    def _build(self, envs: VecEnv, **options: Any) -> Any:
        """Makes SB3's algorithm with these options and its own."""

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes; after the warm-up, each batch of them is followed by updates.

        A last batch that they do not fill is played and not learned from.
        """
        self.model.set_logger(Logger(folder=None, output_formats=[Forward(log)]))
        rest = evaluations % self.config.episodes_per_batch
        with self._randomness.active():
            if evaluations > rest:
                self.model.learn(
                    (evaluations - rest) * self._length,
                    callback=UpdateCallback(),
                    log_interval=1,
                    reset_num_timesteps=not self._episodes,
                )
            self.model.logger.dump()  # of the last update, which no further batch follows
            self._episodes += evaluations - rest
            if rest:
                self._play(rest)

    def _play(self, count: int) -> None:
        """Explores for a few episodes as in a batch."""
        first_seed = None if self._episodes else self._seed
        envs = ContinuousVecEnv(LockstepVecEnv(vectorize(self.env, count), first_seed), self._bits)
        observations: Any = envs.reset()  # (B, F)
        for _ in range(self._length):
            if self._episodes < self.config.warmup_episodes:
                actions = np.array([self.model.action_space.sample() for _ in range(count)])  # (B, D)
            else:
                actions, _ = self.model.predict(observations)
                if self.model.action_noise is not None:
                    scaled = self.model.policy.scale_action(actions)  # in [-1, 1], where the noise belongs
                    drawn = [self.model.action_noise().reshape(-1, scaled.shape[1]) for _ in range(count)]
                    scaled += np.concatenate(drawn)[:count]  # SB3's noise is for one copy, or for all of a batch
                    actions = self.model.policy.unscale_action(scaled.clip(-1, 1))
            observations, rewards, _, _ = envs.step(actions)
            for reward in rewards:
                finite_reward(reward)
        self._episodes += count

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
        self.venv.step_async(self._bits.actions(actions))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Takes a decision in every copy; the infos of the last one hold the numbers of what was executed, (T, D)."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "executed_actions" in info:
                info["executed_numbers"] = self._bits.continuous(info["executed_actions"])
        return observations, rewards, dones, infos  # type: ignore[return-value]


class WholeEpisodes(ReplayBuffer):
    """Replay that is put right when the episodes of a batch end, all at once.

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
        """Stores a step of every copy; the last one of the episodes completes them all."""
        super().add(obs, next_obs, action, reward, done, infos)
        if not done.all():
            return
        executed = np.stack([info["executed_numbers"] for info in infos], axis=1)  # (T, B, D)
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        steps = np.arange(self.pos - len(executed), self.pos)  # the buffer holds whole episodes: at its end, from -T
        self.actions[steps] = 2 * (executed - low) / (high - low) - 1  # SB3's replay holds actions in [-1, 1]
        self.rewards[steps] = reward  # (B,)
        self.dones[steps] = 1
        held = (self.rewards if self.full else self.rewards[: self.pos]).astype(np.float64)
        self._mean, self._spread = float(held.mean()), float(held.std()) + 1e-8

    def _normalize_reward(self, reward: np.ndarray, env: Any = None) -> np.ndarray:  # type: ignore[override]
        return (reward - self._mean) / self._spread
