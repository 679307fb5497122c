"""SAC (Haarnoja et al. 2018) by Stable-Baselines3, on bits as numbers: a stochastic actor of a fixed entropy."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3_off_policy import OffPolicyAgent


@dataclass(frozen=True)
class SACConfig:
    """Options of the SAC agent."""

    hidden: int = 64
    """Units of both hidden layers of actor and critics."""
    learning_rate: float = 6e-3
    """Adam's step size."""
    episodes_per_batch: int = 16
    """Episodes that run side by side between updates."""
    updates_per_batch: int = 4
    """Gradient steps after each batch."""
    batch_size: int = 128
    """Transitions in a gradient step."""
    replay_episodes: int = 256
    """Episodes that replay holds; older ones are overwritten."""
    warmup_episodes: int = 24
    """Episodes of uniformly random actions before the first gradient step."""
    entropy: float = -1.0
    """Entropy that the actor is held to, in nats for each number. They span [-1, 1] inside SAC, so that -1 is a spread
    over a fifth of the options."""
    entropy_coefficient: float = 0.3
    """First weight of the entropy beside returns of unit spread; it is learned from there."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "batch_size", "replay_episodes", "updates_per_batch")
        require_in_range(self, 1, math.inf, "episodes_per_batch", "warmup_episodes")
        require_in_range(self, 0, math.inf, "learning_rate")
        require_in_range(self, 1e-6, math.inf, "entropy_coefficient")
        require_in_range(self, -10, 1, "entropy")


class SACAgent(OffPolicyAgent):
    """SAC from Stable-Baselines3, on bits as numbers."""

    name: ClassVar[str] = "sac"
    config_class: ClassVar[type] = SACConfig

    def _build(self, envs: VecEnv, **options: Any) -> SAC:
        (dims,) = envs.action_space.shape or ()
        return SAC(
            "MlpPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            batch_size=self.config.batch_size,
            ent_coef=f"auto_{self.config.entropy_coefficient!r}",
            target_entropy=self.config.entropy * dims,
            policy_kwargs={
                "net_arch": [self.config.hidden, self.config.hidden],
                "optimizer_kwargs": {"fused": True},
            },
            **options,
        )
