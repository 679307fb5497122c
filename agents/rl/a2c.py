"""A2C (Mnih et al. 2016, synchronous) by Stable-Baselines3: one gradient step on each rollout of whole episodes.

It takes no masks. Where one is closed the environment executes the nearest open option, and the rollout holds that one
(`agents.rl.sb3`).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3 import OnPolicyAgent


@dataclass(frozen=True)
class A2CConfig:
    """Options of the A2C agent."""

    hidden: int = 64
    """Units of both hidden layers of the policy and of the value network."""
    learning_rate: float = 3e-3
    """RMSprop's step size."""
    episodes_per_update: int = 4
    """Episodes in a rollout, which serves one gradient step; at least 2, for advantages are normalised over them."""
    gae_lambda: float = 1.0
    """1 makes advantages the final reward less the value: the reward is terminal and episodes are short."""
    entropy_bonus: float = 0.2
    """Weight of the policy's entropy (nats per decision) beside normalised advantages."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this Euclidean norm."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden")
        require_in_range(self, 2, math.inf, "episodes_per_update")
        require_in_range(self, 0, math.inf, "learning_rate", "entropy_bonus", "max_gradient_norm")
        require_in_range(self, 0, 1, "gae_lambda")


class A2CAgent(OnPolicyAgent):
    """A2C from Stable-Baselines3, with normalised advantages."""

    name: ClassVar[str] = "a2c"
    config_class: ClassVar[type] = A2CConfig

    def _build(self, envs: VecEnv, seed: int) -> A2C:
        return A2C(
            "MlpPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            n_steps=self._length,
            gamma=1.0,
            gae_lambda=self.config.gae_lambda,
            ent_coef=self.config.entropy_bonus,
            max_grad_norm=self.config.max_gradient_norm,
            normalize_advantage=True,
            policy_kwargs={"net_arch": [self.config.hidden, self.config.hidden]},
            seed=seed,
            device="cpu",
        )
