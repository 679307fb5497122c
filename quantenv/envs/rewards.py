"""The penalty-free reward of a finished allocation: two forms, chosen by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from quantenv.core.arguments import finite_number, named, one_of
from quantenv.core.errors import QuantenvError, unknown_name

REWARDS = ("accuracy", "weighted")


#: One accuracy, or those of N episodes, float64 (N,).
Accuracy = TypeVar("Accuracy", float, np.ndarray)


class Reward(Protocol):
    """Prices a finished allocation, or those of N episodes."""

    def __call__(self, accuracy: Accuracy, costs: np.ndarray) -> Accuracy:
        """Returns the reward for an accuracy, 0-1, and the costs in all metrics, float64 (K,) or (N, K), SI units."""
        ...


@dataclass(frozen=True)
class AccuracyReward:
    """scale * (accuracy - reference accuracy): HAQ's reward (Wang et al., CVPR 2019; there scale 0.1)."""

    scale: float
    reference_accuracy: float

    def __call__(self, accuracy: Accuracy, costs: np.ndarray) -> Accuracy:
        """Returns the reward; `costs` play no part."""
        return self.scale * (accuracy - self.reference_accuracy)


@dataclass(frozen=True)
class WeightedReward:
    """scale * (w_accuracy * accuracy - sum over metrics of w_m * cost_m / unit_m)."""

    scale: float
    accuracy_weight: float
    cost_weights: np.ndarray
    """w_m / unit_m of every metric, float64 (K,)."""

    def __call__(self, accuracy: Accuracy, costs: np.ndarray) -> Accuracy:
        """Returns the reward."""
        return self.scale * (self.accuracy_weight * accuracy - (costs * self.cost_weights).sum(axis=-1))


def make_reward(
    name: str,
    scale: float,
    weights: Mapping[str, float] | None,
    reference_accuracy: float,
    units: Mapping[str, float],
) -> Reward:
    """Makes a reward.

    Args:
        name: A name of `REWARDS`.
        scale: Factor of the whole reward, > 0.
        weights: For ``weighted``: weight >= 0 of ``accuracy`` (1 if left out) and of metrics (0 if left out).
        reference_accuracy: Accuracy of the float network, 0-1.
        units: What each metric's cost is divided by, in the order of the costs: its budget, or the network's
            8-bit cost if it has none.

    Raises:
        QuantenvError: If a name is unknown, or the scale or weights are out of range, missing or without
        effect.
    """
    one_of(name, "reward", REWARDS)
    scale = finite_number(scale, "reward_scale", above=0)
    if name == "accuracy":
        if weights is not None:
            raise QuantenvError("reward_weights have no effect on reward='accuracy': use reward='weighted'.")
        return AccuracyReward(scale, reference_accuracy)
    weights = named(weights, "reward_weights", "numbers")
    if not weights:
        raise QuantenvError("reward='weighted' needs reward_weights, for example {'accuracy': 1, 'latency': 0.1}.")
    for key, weight in weights.items():
        if key not in ("accuracy", *units):
            raise unknown_name("metric in reward_weights:", key, ("accuracy", *units))
        weights[key] = finite_number(weight, f"reward_weights[{key!r}]", low=0)
    cost_weights = np.array([weights.get(metric, 0.0) / unit for metric, unit in units.items()])
    return WeightedReward(scale, weights.get("accuracy", 1.0), cost_weights)
