"""PPO (Schulman et al. 2017) from Stable-Baselines3; with action masks, MaskablePPO from sb3-contrib.

Rollouts hold whole episodes and are far smaller than SB3's defaults, because the budget is a few hundred episodes of a
dozen decisions. On masks, see Huang and Ontanon 2022.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3 import OnPolicyAgent
from quantenv.core.errors import QuantenvError


@dataclass(frozen=True)
class PPOConfig:
    """Options of the PPO agent."""

    hidden: int = 64
    """Units of both hidden layers of the policy and of the value network."""
    learning_rate: float = 6e-3
    """Adam's step size."""
    episodes_per_update: int = 16
    """Episodes in a rollout."""
    episodes_per_minibatch: int = 16
    """Episodes' worth of decisions in a gradient step; divides `episodes_per_update`."""
    epochs: int = 6
    """Passes over a rollout."""
    clip_range: float = 0.2
    """How far the probability ratio may move before the objective is clipped."""
    gae_lambda: float = 1.0
    """1 makes advantages the final reward less the value: the reward is terminal and episodes are short."""
    entropy_bonus: float = 0.2
    """Weight of the policy's entropy. Large: at 0.03 five of six episodes repeat an allocation that is known."""
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


class PPOAgent(OnPolicyAgent):
    """PPO from Stable-Baselines3, with action masks (MaskablePPO) where the constraint is a mask."""

    name: ClassVar[str] = "ppo"
    config_class: ClassVar[type] = PPOConfig
    masking: ClassVar[bool] = True

    def _build(self, envs: VecEnv, seed: int) -> PPO | MaskablePPO:
        return (MaskablePPO if self.masked else PPO)(
            "MlpPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            n_steps=self._length,
            batch_size=self.config.episodes_per_minibatch * self._length,
            n_epochs=self.config.epochs,
            gamma=1.0,
            gae_lambda=self.config.gae_lambda,
            clip_range=self.config.clip_range,
            ent_coef=self.config.entropy_bonus,
            max_grad_norm=self.config.max_gradient_norm,
            policy_kwargs={
                "net_arch": [self.config.hidden, self.config.hidden],
                "optimizer_kwargs": {"fused": True},
            },
            seed=seed,
            device="cpu",
        )
