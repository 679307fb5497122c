"""Random search: the floor that every agent has to beat at the same number of evaluations.

Each decision is uniform over the actions that the mask allows, so under the `mask` constraint every sampled
allocation is feasible, as it is for the learners.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from agents.base import Log, checked_seed, counts_evaluations, in_force
from agents.checkpoint import FORMAT, read_agent
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import write_tensors


@dataclass(frozen=True)
class RandomConfig:
    """Random search has no options."""


class RandomAgent:
    """Uniform choice among the allowed actions: the floor."""

    name: ClassVar[str] = "random"
    config_class: ClassVar[type] = RandomConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: RandomConfig | None = None) -> None:
        """See `agents.base.Agent`."""
        self.env = env
        self.config = in_force(config, RandomConfig)
        seed = checked_seed(seed)
        self._seed = seed
        self._generator = np.random.default_rng(seed)
        self._episodes = 0
        self.start_episode()

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Finishes this many random episodes; there is nothing to learn or log."""
        with self.env.unwrapped.unread():  # type: ignore[attr-defined]
            self._play(evaluations)

    def _play(self, episodes: int) -> None:
        for _ in range(episodes):
            _, info = self.env.reset(seed=None if self._episodes else self._seed)
            self._episodes += 1
            ended = False
            while not ended:
                _, _, terminated, truncated, info = self.env.step(_choose(self._generator, info["action_mask"]))
                ended = terminated or truncated

    def start_episode(self) -> None:
        """Rewinds the generator of `act`, so that acting is deterministic."""
        self._acting = np.random.default_rng(self._seed)

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Chooses among the allowed actions, the same way in every episode."""
        return _choose(self._acting, action_mask)

    def save(self, path: Path) -> None:
        """Writes the seed."""
        write_tensors(path, FORMAT, {"agent": self.name, "seed": self._seed}, {})

    def load(self, path: Path) -> None:
        """Reads the seed.

        Raises:
            QuantenvError: If the file is missing, damaged or another agent's.
        """
        content, _ = read_agent(path, self.name)
        if set(content) != {"seed"} or type(content["seed"]) is not int or not 0 <= content["seed"] < 1 << 32:
            raise QuantenvError(f"{path} is not a saved random agent: it holds no seed. Give another file.")
        self._seed = content["seed"]
        self.start_episode()


def _choose(generator: np.random.Generator, action_mask: np.ndarray) -> int:
    return int(generator.choice(np.flatnonzero(action_mask)))
