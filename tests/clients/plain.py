"""What an episode is worth in a plain loop: the number that every client must come to."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

import quantenv  # noqa: F401 - registers the ids

ID = "quantenv/DigitsTable-v0"
#: Decisions in an episode of it, actions of each, and features of an observation.
DECISIONS, ACTIONS, FEATURES = 8, 4, 15


def replay(actions: Sequence[int], **settings: Any) -> tuple[list[np.ndarray], float, dict[str, Any]]:
    """Plays actions; returns the observations, the return and the last info."""
    env = gymnasium.make(ID, **settings)
    observation, _ = env.reset()
    observations, total = [observation], 0.0
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(int(action))
        observations.append(observation)
        total += float(reward)
        assert not truncated
    assert terminated
    return observations, total, info
