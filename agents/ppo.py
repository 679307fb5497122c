"""PPO (Schulman et al. 2017) from Stable-Baselines3; with action masks, MaskablePPO from sb3-contrib.

SB3 is used as it comes. Around it are the three things that it does not do: stop after an exact number of
evaluations, learn from the executed actions where the environment corrects them, and leave the global random
states alone. Rollouts hold whole episodes and are far smaller than SB3's defaults, because the budget is a few
hundred episodes of a dozen decisions. On masks, see Huang and
Ontanon 2022.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.base import Log, finite_reward, problem_size, require_in_range
from agents.checkpoint import load_modules, save_modules
from quantenv.errors import QuantenvError


@dataclass(frozen=True)
class PPOConfig:
    """Options of the PPO agent."""

    hidden: int = 64
    """Units of both hidden layers of the policy and of the value network."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    episodes_per_update: int = 8
    """Episodes in a rollout."""
    episodes_per_minibatch: int = 4
    """Episodes' worth of decisions in a gradient step; divides `episodes_per_update`."""
    epochs: int = 10
    """Passes over a rollout."""
    clip_range: float = 0.2
    """How far the probability ratio may move before the objective is clipped."""
    gae_lambda: float = 1.0
    """1 makes advantages the final reward less the value: the reward is terminal and episodes are short."""
    entropy_bonus: float = 0.03
    """Weight of the policy's entropy."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this Euclidean norm."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "episodes_per_update", "episodes_per_minibatch", "epochs")
        require_in_range(self, 0, math.inf, "learning_rate", "clip_range", "entropy_bonus", "max_gradient_norm")
        require_in_range(self, 0, 1, "gae_lambda")
        if self.episodes_per_update % self.episodes_per_minibatch:
            raise QuantenvError(
                f"PPOConfig: episodes_per_minibatch ({self.episodes_per_minibatch}) must divide "
                f"episodes_per_update ({self.episodes_per_update})."
            )


class PPOAgent:
    """PPO from Stable-Baselines3, with action masks (MaskablePPO) where the constraint is a mask."""

    name: ClassVar[str] = "ppo"
    config_class: ClassVar[type] = PPOConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: PPOConfig | None = None) -> None:
        """See `agents.base.Agent`."""
        self.config = config or PPOConfig()
        _, _, self._length = problem_size(env)
        self.masked = env.get_wrapper_attr("constraint") == "mask"
        self._randomness = _PrivateRandomness()
        with self._randomness.active():
            self.model = (MaskablePPO if self.masked else PPO)(
                "MlpPolicy",
                DummyVecEnv([lambda: env]),
                learning_rate=self.config.learning_rate,
                n_steps=self.config.episodes_per_update * self._length,
                batch_size=self.config.episodes_per_minibatch * self._length,
                n_epochs=self.config.epochs,
                gamma=1.0,
                gae_lambda=self.config.gae_lambda,
                clip_range=self.config.clip_range,
                ent_coef=self.config.entropy_bonus,
                max_grad_norm=self.config.max_gradient_norm,
                policy_kwargs={"net_arch": [self.config.hidden, self.config.hidden]},
                seed=seed,
                device="cpu",
            )

    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes; a last rollout that they do not fill is not learned from."""
        self.model.set_logger(Logger(folder=None, output_formats=[_Forward(log)]))
        with self._randomness.active():
            self.model.learn(evaluations * self._length, callback=_Episodes(evaluations, self.masked))
        # SB3 writes an update's metrics at the next rollout, and none followed the last update.
        self.model.logger.dump()

    def start_episode(self) -> None:
        """Does nothing: the policy has no memory."""

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Chooses the most probable action, among the allowed ones where the constraint is a mask."""
        masks: dict[str, Any] = {"action_masks": np.asarray(action_mask, dtype=bool)} if self.masked else {}
        return int(self.model.predict(observation, deterministic=True, **masks)[0])

    def save(self, path: Path) -> None:
        """Writes the policy's weights (SB3's own archive holds pickled objects, which loading would run)."""
        save_modules(path, self.name, {"policy": self.model.policy})

    def load(self, path: Path) -> None:
        """Reads the policy's weights; see `agents.base.Agent` for the errors."""
        load_modules(path, self.name, {"policy": self.model.policy})


class _Episodes(BaseCallback):
    """Ends learning after an exact number of episodes, and puts the executed actions into the rollout."""

    def __init__(self, evaluations: int, masked: bool) -> None:
        super().__init__()
        self.left = evaluations
        self.masked = masked
        self.executed: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        self.executed = []

    def _on_step(self) -> bool:
        finite_reward(self.locals["rewards"][0])
        if self.locals["dones"][0]:
            self.executed.append(self.locals["infos"][0]["executed_actions"])
            self.left -= 1
        # A rollout that is full just now may still be learned from: SB3 then stops by its count of steps.
        full = self.locals["n_steps"] + 1 == self.locals["n_rollout_steps"]
        return self.left > 0 or full

    def _on_rollout_end(self) -> None:
        """Replaces actions that were not executed, with their log-probabilities: the reward is not theirs."""
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        policy: Any = self.model.policy
        executed = np.concatenate(self.executed)  # (S,), S = decisions in the rollout
        corrected = np.flatnonzero(executed != buffer.actions[:, 0, 0])
        if not len(corrected):
            return
        masks = {"action_masks": buffer.action_masks[corrected, 0]} if self.masked else {}
        with torch.no_grad():
            _, log_probs, _ = policy.evaluate_actions(
                torch.as_tensor(buffer.observations[corrected, 0]),
                torch.as_tensor(executed[corrected]),
                **masks,
            )
        buffer.actions[corrected, 0, 0] = executed[corrected]
        buffer.log_probs[corrected, 0] = log_probs.numpy()


class _Forward(KVWriter):
    """Hands on SB3's training metrics; those of rollouts and time are the run's to measure."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        metrics = {key: float(value) for key, value in key_values.items() if key.startswith("train/")}
        if metrics:
            self.log(metrics)

    def close(self) -> None:
        """Nothing is open."""


class _PrivateRandomness:
    """SB3 seeds and draws from the global generators: here they are lent to it and put back."""

    def __init__(self) -> None:
        self._inside = _global_states()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swaps the agent's states in for the duration of the block."""
        outside = _global_states()
        _set_global_states(self._inside)
        try:
            yield
        finally:
            self._inside = _global_states()
            _set_global_states(outside)


def _global_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _set_global_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
