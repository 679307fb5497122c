"""TD3 (Fujimoto et al. 2018) by Stable-Baselines3, on bits as numbers: DDPG with two critics and a slower actor."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from stable_baselines3 import TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3_off_policy import OffPolicyAgent


@dataclass(frozen=True)
class TD3Config:
    """Options of the TD3 agent."""

    hidden: int = 64
    """Units of both hidden layers of actor and critics."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    episodes_per_batch: int = 8
    """Episodes that run side by side between updates."""
    updates_per_batch: int = 8
    """Gradient steps after each batch."""
    updates_per_actor_update: int = 2
    """Of these, how many for each one of the actor and the targets."""
    batch_size: int = 64
    """Transitions in a gradient step."""
    replay_episodes: int = 256
    """Episodes that replay holds; older ones are overwritten."""
    warmup_episodes: int = 40
    """Episodes of uniformly random actions before the first gradient step; SB3 adds the noise to these, too."""
    noise: float = 0.5
    """Standard deviation of the exploration noise on numbers in [-1, 1]; it does not decay."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "batch_size", "replay_episodes", "updates_per_batch")
        require_in_range(self, 1, math.inf, "episodes_per_batch", "updates_per_actor_update", "warmup_episodes")
        require_in_range(self, 0, math.inf, "learning_rate", "noise")


class TD3Agent(OffPolicyAgent):
    """TD3 from Stable-Baselines3, on bits as numbers."""

    name: ClassVar[str] = "td3"
    config_class: ClassVar[type] = TD3Config

    def _build(self, envs: VecEnv, **options: Any) -> TD3:
        mean = np.zeros(envs.action_space.shape or ())
        return TD3(
            "MlpPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            batch_size=self.config.batch_size,
            policy_delay=self.config.updates_per_actor_update,
            action_noise=NormalActionNoise(mean, np.full_like(mean, self.config.noise)),
            policy_kwargs={
                "net_arch": [self.config.hidden, self.config.hidden],
                "optimizer_kwargs": {"fused": True},
            },
            **options,
        )
