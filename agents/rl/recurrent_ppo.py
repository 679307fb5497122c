"""PPO with an LSTM (sb3-contrib's RecurrentPPO): the policy remembers what it decided for the earlier layers.

It takes no masks. Where one is closed the environment executes the nearest open option, and the rollout holds that one
(`agents.rl.sb3`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.vec_env import VecEnv

from agents.base import require_in_range
from agents.rl.sb3 import OnPolicyAgent


@dataclass(frozen=True)
class RecurrentPPOConfig:
    """Options of the recurrent PPO agent."""

    hidden: int = 64
    """Units of the LSTM, and of the layer behind it in the policy and in the value network."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    episodes_per_update: int = 16
    """Episodes in a rollout, all of which enter each gradient step."""
    epochs: int = 4
    """Gradient steps on a rollout."""
    clip_range: float = 0.2
    """How far the probability ratio may move before the objective is clipped."""
    gae_lambda: float = 1.0
    """1 makes advantages the final reward less the value: the reward is terminal and episodes are short."""
    entropy_bonus: float = 0.3
    """Weight of the policy's entropy (nats per decision)."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this Euclidean norm."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "episodes_per_update", "epochs")
        require_in_range(self, 0, math.inf, "learning_rate", "clip_range", "entropy_bonus", "max_gradient_norm")
        require_in_range(self, 0, 1, "gae_lambda")


class RecurrentPPOAgent(OnPolicyAgent):
    """PPO with an LSTM over the layers, from sb3-contrib."""

    name: ClassVar[str] = "recurrent-ppo"
    config_class: ClassVar[type] = RecurrentPPOConfig

    def _build(self, envs: VecEnv, seed: int) -> RecurrentPPO:
        model = RecurrentPPO(
            "MlpLstmPolicy",
            envs,
            learning_rate=self.config.learning_rate,
            n_steps=self._length,
            batch_size=self.config.episodes_per_update * self._length,
            n_epochs=self.config.epochs,
            gamma=1.0,
            gae_lambda=self.config.gae_lambda,
            clip_range=self.config.clip_range,
            ent_coef=self.config.entropy_bonus,
            max_grad_norm=self.config.max_gradient_norm,
            policy_kwargs={
                "net_arch": [self.config.hidden],
                "lstm_hidden_size": self.config.hidden,
                # A second LSTM for the values would double the time of an update.
                "enable_critic_lstm": False,
                "optimizer_kwargs": {"fused": True},
            },
            seed=seed,
            device="cpu",
        )
        own: Any = model.rollout_buffer
        model.rollout_buffer = WholeEpisodeBuffer(
            own.buffer_size,
            own.observation_space,
            own.action_space,
            own.hidden_state_shape,
            own.device,
            own.gae_lambda,
            own.gamma,
            own.n_envs,
        )
        return model

    def log_probabilities(self, buffer: Any, steps: np.ndarray, copies: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Gives log-probabilities as `OnPolicyAgent` does, from the LSTM's states before those steps."""

        def states(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
            stored = (getattr(buffer, f"{part}_states_{kind}") for part in ("hidden", "cell"))  # (T, layers, B, H) each
            hidden, cell = (torch.as_tensor(each[steps, :, copies]).transpose(0, 1).contiguous() for each in stored)
            return hidden, cell  # (layers, S, H) each

        with torch.no_grad():
            _, log_probabilities, _ = self.model.policy.evaluate_actions(
                torch.as_tensor(buffer.observations[steps, copies]),
                torch.as_tensor(actions),
                RNNStates(states("pi"), states("vf")),
                torch.as_tensor(buffer.episode_starts[steps, copies]),
            )
        return log_probabilities.numpy()


class WholeEpisodeBuffer(RecurrentRolloutBuffer):
    """A rollout whose copies each hold one episode, from its first step to its last.

    sb3-contrib's own cuts a sequence at random, pads the others to its length, and has the LSTM run step by step, to
    forget at every episode's start. Here all sequences are episodes and start from zero states, so that it runs over
    whole ones at once: the same gradients, but through all of every episode, at half of an update's cost.
    """

    def get(self, batch_size: int | None = None) -> Iterator[RecurrentRolloutBufferSamples]:  # type: ignore[override]
        """Yields everything as one batch, copy after copy; the batch size is that already."""
        layers, hidden = self.hidden_state_shape[1], self.hidden_state_shape[3]

        def sequences(stored: np.ndarray) -> torch.Tensor:
            return self.to_torch(self.swap_and_flatten(stored))  # (T, B, ...) to (B * T, ...)

        zeros = torch.zeros(layers, self.n_envs, hidden)
        returns = sequences(self.returns).flatten()
        yield RecurrentRolloutBufferSamples(
            observations=sequences(self.observations),
            actions=sequences(self.actions),
            old_values=sequences(self.values).flatten(),
            old_log_prob=sequences(self.log_probs).flatten(),
            advantages=sequences(self.advantages).flatten(),
            returns=returns,
            lstm_states=RNNStates((zeros, zeros), (zeros, zeros)),
            episode_starts=torch.zeros_like(returns),  # 1 would make it forget, of which there is nothing yet
            mask=torch.ones_like(returns),
        )
