"""The environment wrapper that turns what an agent does into episodes and shows each one to whoever listens.

Recording lives here, not in the agents, so that counting and logging are the same for all of them.
"""

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from experiments.episodes import Episode

Listener = Callable[[Episode], None]


class EpisodeRecorder(gymnasium.Wrapper):
    """Passes everything through and calls `listeners`, in order, with every finished episode."""

    def __init__(self, env: gymnasium.Env, samples: int) -> None:
        """Wraps a QuantizationEnv.

        Args:
            env: The environment, wrapped or not.
            samples: Samples of the search split.
        """
        super().__init__(env)
        self.listeners: list[Listener] = []
        self.evaluations = 0
        self._samples = samples
        self._reward = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._reward = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a decision; after the last one of an episode, shows it to the listeners."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._reward += float(reward)
        if terminated or truncated:
            self.evaluations += 1
            episode = self._episode(info)
            for listener in self.listeners:
                listener(episode)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Returns which actions the decision at hand allows, bool (n_actions,)."""
        return self.env.get_wrapper_attr("action_masks")()

    def _episode(self, info: dict[str, Any]) -> Episode:
        penalty = info.get("penalty_lambda")
        return Episode(
            evaluation=self.evaluations,
            bits=tuple((int(weight), int(activation)) for weight, activation in info["bits"]),
            correct=round(float(info["accuracy"]) * self._samples),
            samples=self._samples,
            loss=float(info["loss"]),
            reward=self._reward,
            costs={key.removeprefix("cost_"): float(info[key]) for key in info if key.startswith("cost_")},
            feasible=bool(info["feasible"]),
            penalty_lambda=None if penalty is None else float(penalty),
        )
