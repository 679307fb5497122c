"""Wrappers around QuantizationEnv for agents that act otherwise."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from quantenv.core.arguments import plain
from quantenv.core.errors import QuantenvError, shown
from quantenv.envs.environment import QuantizationEnv


class ContinuousBits(gymnasium.ActionWrapper):
    """Lets an agent choose bits by a number in [0, 1], two for joint decisions (weights, activations).

    The bits are round(b_min - 0.5 + a * (b_max - b_min + 1)), HAQ's equal intervals (Wang et al., CVPR 2019),
    kept within b_min and b_max, which HAQ's rounding leaves at the ends, and moved to the nearest
    bits on offer (ties: fewer).
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, int]) -> None:
        """Wraps an environment.

        Args:
            env: A QuantizationEnv, wrapped or not.

        Raises:
            QuantenvError: If it is another environment.
        """
        super().__init__(env)
        if not isinstance(env.unwrapped, QuantizationEnv):
            raise QuantenvError(
                f"ContinuousBits wraps a QuantizationEnv, not {type(env.unwrapped).__name__}: give it one."
            )
        walk = env.unwrapped.walk
        self._bits = np.array(walk.bits)
        self._dims = 2 if walk.mode == "joint" else 1
        self.action_space = spaces.Box(0.0, 1.0, (self._dims,), dtype=np.float32)
        whole = np.arange(self._bits[0], self._bits[-1] + 1)
        owner = np.abs(whole[:, None] - self._bits).argmin(axis=1)  # the first, so the fewest bits, among equals
        first, count = (np.array(x) for x in np.unique(owner, return_index=True, return_counts=True)[1:])
        self._centres = ((first + count / 2) / len(whole)).astype(np.float32)

    def action(self, action: Any) -> int:
        """Turns numbers in [0, 1], shape (1,) or (2,), into the index of an action.

        Raises:
            QuantenvError: If the shape is wrong or a number is not finite.
        """
        return int(self.actions([plain(action)])[0])

    def actions(self, numbers: Any) -> np.ndarray:
        """Turns numbers in [0, 1], shape (B, 1) or (B, 2), into indices of actions, int64 (B,).

        Raises:
            QuantenvError: If the shape is wrong or a number is not finite.
        """
        try:
            values = np.asarray(plain(numbers), dtype=np.float64)
        except (TypeError, ValueError):  # text, complex numbers, rows of different lengths
            values = np.full((1, 0), np.nan)
        if values.ndim != 2 or values.shape[1] != self._dims or not np.isfinite(values).all():
            raise QuantenvError(
                f"Continuous actions are {shown(numbers)}: expected {self._dims} finite number(s) in [0, 1] for each, "
                f"shape (B, {self._dims})."
            )
        least, most = self._bits[0], self._bits[-1]
        rounded = np.clip(np.round(least - 0.5 + values * (most - least + 1)), least, most)
        indices = np.abs(rounded[..., None] - self._bits).argmin(axis=-1)  # (B, D)
        return indices @ len(self._bits) ** np.arange(self._dims)[::-1]

    def continuous(self, actions: np.ndarray) -> np.ndarray:
        """Turns executed actions into continuous ones, for replay.

        Args:
            actions: Indices of actions, int (T,), for example ``info["executed_actions"]``.

        Returns:
            float32 (T, 1), or (T, 2) for joint decisions: the centre of each option's interval.

        Raises:
            QuantenvError: If they are no indices of actions, such as the -1 that stands in infos before the end.
        """
        executed = np.asarray(plain(actions))
        count = len(self._bits) ** self._dims
        if executed.ndim != 1 or executed.dtype.kind not in "iu" or ((executed < 0) | (executed >= count)).any():
            raise QuantenvError(f"Executed actions are {shown(actions)}: expected whole numbers from 0 to {count - 1}.")
        indices = np.stack(np.divmod(executed, len(self._bits)), axis=1) if self._dims == 2 else executed[:, None]
        return self._centres[indices]
