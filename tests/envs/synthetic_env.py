"""Environments over the synthetic additive evaluator, and episodes on them."""

from typing import Any

import numpy as np

from quantenv.core.layers import LayerSpec
from quantenv.envs.environment import QuantizationEnv
from tests.synthetic import AdditiveEvaluator, synthetic_layers


def make_env(layers: tuple[LayerSpec, ...] | int = 6, **kwargs: Any) -> QuantizationEnv:
    """Makes an environment that needs no task."""
    layers = synthetic_layers(layers) if isinstance(layers, int) else layers
    evaluator = AdditiveEvaluator(layers)
    kwargs = {"evaluator": evaluator, "sensitivity": evaluator.sensitivity, **kwargs}
    return QuantizationEnv(None, **kwargs)


def play(env: Any, actions: Any) -> tuple[list[np.ndarray], list[float], list[dict[str, Any]]]:
    """Plays one episode from reset; `actions` is a sequence or a function of the mask."""
    observation, info = env.reset()
    observations, rewards, infos = [observation], [], [info]
    for step in range(env.unwrapped.n_decisions):
        action = actions(infos[-1]["action_mask"]) if callable(actions) else actions[step]
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        assert terminated == (step == env.unwrapped.n_decisions - 1)
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    return observations, rewards, infos


def highest(mask: np.ndarray) -> int:
    """The last open option: the most bits."""
    return int(np.flatnonzero(mask)[-1])


def same(left: Any, right: Any) -> bool:
    """Whether two steps' results are equal to the bit, types included."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    return type(left) is type(right) and left == right
