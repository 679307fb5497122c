"""The environment wrapper that turns what an agent does into episodes and shows each one to whoever listens.

Recording lives here, not in the agents, so that counting and logging are the same for all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from agents.base import vectorize
from experiments.runs.episodes import Episode

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
        """Takes a decision; after the last one of an episode, shows it to the listeners.

        An episode that a time limit cuts off has no allocation, and so no evaluation: it is not shown.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._reward += float(reward)
        if terminated:
            self.record(info, self._reward)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Returns which actions the decision at hand allows, bool (n_actions,)."""
        return self.env.get_wrapper_attr("action_masks")()

    def vectorize(self, num_envs: int) -> "RecordedCopies":
        """Makes copies of the environment whose episodes are recorded here, those that end together in their order."""
        return RecordedCopies(vectorize(self.env, num_envs), self)

    def record(self, info: Mapping[str, Any], reward: float) -> None:
        """Shows an episode to the listeners.

        Args:
            info: Its last info.
            reward: Sum of its rewards.
        """
        self.evaluations += 1
        episode = self._episode(info, reward)
        for listener in self.listeners:
            listener(episode)

    def _episode(self, info: Mapping[str, Any], reward: float) -> Episode:
        penalty = info.get("penalty_lambda")
        return Episode(
            evaluation=self.evaluations,
            bits=tuple((int(weight), int(activation)) for weight, activation in info["bits"]),
            correct=round(float(info["accuracy"]) * self._samples),
            samples=self._samples,
            loss=float(info["loss"]),
            reward=reward,
            costs={key.removeprefix("cost_"): float(info[key]) for key in info if key.startswith("cost_")},
            feasible=bool(info["feasible"]),
            penalty_lambda=None if penalty is None else float(penalty),
        )


class RecordedCopies(VectorWrapper):
    """Copies in lock-step, each of whose episodes is recorded."""

    def __init__(self, env: VectorEnv, recorder: EpisodeRecorder) -> None:
        """Wraps the copies that an environment's `vectorize` made.

        Args:
            env: The copies.
            recorder: Where their episodes are recorded.
        """
        super().__init__(env)
        self._recorder = recorder
        self._rewards = np.zeros(self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in every copy."""
        self._rewards[:] = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes a decision in every copy; after the last one, shows the episodes to the listeners."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._rewards += rewards
        if terminated.any():
            final = {key: values for key, values in infos["final_info"].items() if not key.startswith("_")}
            totals, self._rewards = self._rewards, np.zeros(self.num_envs)
            for index, total in enumerate(totals.tolist()):
                self._recorder.record({key: values[index] for key, values in final.items()}, total)
        return observations, rewards, terminated, truncated, infos
