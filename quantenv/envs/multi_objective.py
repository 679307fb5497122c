"""MultiObjectiveEnv: accuracy and costs as a vector of rewards, for agents of MO-Gymnasium."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from quantenv.core.arguments import listed, one_of
from quantenv.core.errors import QuantenvError, shown
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.subject import TaskLike
from quantenv.evaluation.base import Evaluation

#: The objective that is not a cost.
ACCURACY = "accuracy"


class MultiObjectiveEnv(QuantizationEnv):
    """A `QuantizationEnv` whose reward is a vector, in the interface of MO-Gymnasium (Felten et al., NeurIPS 2023).

    The reward is float32 (len(objectives),), to be maximised in each entry; terminal, 0 before. An objective
    ``accuracy`` is the accuracy, 0 to 1. A metric's is -cost / the network's cost with 8-bit weights and activations,
    -1 to 0: shares, so that weights of a scalarisation mean the same on every network. `reward_space` and
    `reward_dim` are what MO-Gymnasium's wrappers and agents read; the package itself is not needed.

    The budget is 1 by default and so bounds nothing: cost is an objective. A lower one cuts the front off. Gymnasium's
    own environment checker does not know vector rewards: the registered ids turn it off.
    """

    def __init__(
        self,
        task: TaskLike = "digits_table",
        *,
        objectives: Sequence[str] = (ACCURACY, "size"),
        budget: Any = 1.0,
        **options: Any,
    ) -> None:
        """Makes the environment.

        Args:
            task: As for `QuantizationEnv`.
            objectives: ``accuracy`` and metrics of the device, each once, in the order of the reward's entries.
            budget: As for `QuantizationEnv`.
            **options: Further arguments of `QuantizationEnv`, but for `reward`, `reward_scale` and `reward_weights`,
                and with a constraint ``mask`` or ``project``: penalties are scalar.

        Raises:
            QuantenvError: If an objective is unknown or repeated, or an option makes the reward a scalar.
        """
        for name in ("reward", "reward_scale", "reward_weights"):
            if name in options:
                raise QuantenvError(f"{name} makes one number of the reward, which is a vector here: leave it out.")
        super().__init__(task, budget=budget, **options)
        if self.constraint not in ("mask", "project"):
            raise QuantenvError(f"Constraint {self.constraint!r} needs a scalar reward: use mask or project.")
        names = listed(objectives, "objectives", "objectives, for example ('accuracy', 'size')")
        for objective in names:
            one_of(objective, "objective", (ACCURACY, *self.tables))
        if not names or len(set(names)) != len(names):
            raise QuantenvError(f"objectives is {shown(objectives)}: give at least one, each of them once.")
        self.objectives = tuple(names)
        """Names of the reward's entries."""
        bounds = np.array(
            [(0.0, 1.0) if name == ACCURACY else (-1.0, 0.0) for name in self.objectives], dtype=np.float32
        )
        self.reward_space = spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32)
        """Where rewards lie."""
        self.reward_dim = len(self.objectives)
        """Number of objectives, by the name that MO-Gymnasium's agents read."""

    @property
    def no_reward(self) -> np.ndarray:
        """The reward before the last decision, zeros float32 (len(objectives),)."""
        return np.zeros(self.reward_dim, dtype=np.float32)

    def _conclude(self, evaluation: Evaluation) -> tuple[Any, dict[str, Any]]:
        _, outcome = super()._conclude(evaluation)
        rewards = [
            evaluation.accuracy if name == ACCURACY else -outcome[f"cost_{name}"] / self.tables[name].reference
            for name in self.objectives
        ]
        return np.array(rewards, dtype=np.float32), outcome
