"""TRPO (Schulman et al. 2015) by sb3-contrib: the longest natural-gradient step within a trust region.

It takes no masks. Where one is closed the environment executes the nearest open option, and the rollout holds that one
(`agents.rl.sb3`).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from sb3_contrib import TRPO
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3 import OnPolicyAgent


@dataclass(frozen=True)
class TRPOConfig:
    """Options of the TRPO agent."""

    hidden: int = 64
    """Units of both hidden layers of the policy and of the value network."""
    learning_rate: float = 3e-3
    """Adam's step size for the value network; the policy's step is the trust region's."""
    episodes_per_update: int = 32
    """Episodes in a rollout, at least 2: advantages are normalised over them."""
    value_updates: int = 10
    """Passes of the value network over a rollout."""
    target_kl: float = 0.06
    """Trust region: mean KL divergence of the new policy from the old one, in nats per decision."""
    conjugate_gradient_steps: int = 10
    """Most steps towards the natural gradient."""
    gae_lambda: float = 1.0
    """1 makes advantages the final reward less the value: the reward is terminal and episodes are short."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "value_updates")
        require_in_range(self, 2, math.inf, "episodes_per_update")
        require_in_range(self, 1, math.inf, "conjugate_gradient_steps")
        require_in_range(self, 0, math.inf, "learning_rate", "target_kl")
        require_in_range(self, 0, 1, "gae_lambda")


class TRPOAgent(OnPolicyAgent):
    """TRPO from sb3-contrib."""

    name: ClassVar[str] = "trpo"
    config_class: ClassVar[type] = TRPOConfig

    def _build(self, envs: VecEnv, seed: int) -> TRPO:
        return TRPO(
            "MlpPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            n_steps=self._length,
            batch_size=self.config.episodes_per_update * self._length,
            gamma=1.0,
            gae_lambda=self.config.gae_lambda,
            cg_max_steps=self.config.conjugate_gradient_steps,
            target_kl=self.config.target_kl,
            n_critic_updates=self.config.value_updates,
            policy_kwargs={"net_arch": [self.config.hidden, self.config.hidden]},
            seed=seed,
            device="cpu",
        )
