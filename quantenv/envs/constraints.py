"""What becomes of options and allocations that break a budget: four constraints, chosen by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from quantenv.core.arguments import named, one_of, real_number
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.envs.projection import project
from quantenv.envs.walk import Walk
from quantenv.hardware.budget import TOLERANCE
from quantenv.hardware.rows import CostRows


@dataclass
class Constraint:
    """Leaves everything as it is. The fields of a constraint are its options."""

    masks_budget: ClassVar[bool] = False
    """Whether options that cannot meet the budget any more are masked."""
    tells: ClassVar[tuple[str, ...]] = ()
    """Names of what `info` returns."""

    def execute(self, bits: np.ndarray, walk: Walk, costs: CostRows, limits: np.ndarray) -> np.ndarray:
        """Returns the allocation that is evaluated for the one that was decided.

        Args:
            bits: The finished allocation of the walk's groups, int64 (G, 2).
            walk: The decisions.
            costs: Budgeted costs of the groups, M rows: one for each budget, or for each step of a maximum.
            limits: Budgets of the rows, float64 (M,).

        Returns:
            The executed allocation, int64 (G, 2).
        """
        return bits

    def reward(self, reward: float, ratios: np.ndarray) -> float:
        """Returns the reward of an allocation.

        Args:
            reward: Penalty-free reward.
            ratios: Cost / budget of each budgeted metric, float64 (M,).
        """
        return reward

    def restart(self) -> None:
        """Forgets what earlier episodes taught; called when the environment is seeded."""

    def info(self) -> dict[str, float]:
        """Returns what an episode's last `info` says of this constraint. Read before `reward` is called."""
        return {}


@dataclass
class Mask(Constraint):
    """Options that cannot meet the budget any more are masked: every finished allocation is feasible."""

    masks_budget: ClassVar[bool] = True


@dataclass
class Project(Constraint):
    """The finished allocation is walked down to the budget; see `projection.project`."""

    def execute(self, bits: np.ndarray, walk: Walk, costs: CostRows, limits: np.ndarray) -> np.ndarray:
        """Returns the projected allocation."""
        return project(bits, walk, costs, limits)


@dataclass
class Reject(Constraint):
    """An infeasible allocation gets a fixed reward; it is evaluated all the same."""

    infeasible_reward: float = -1.0
    """Reward of an infeasible allocation; may be -inf. The default is below any accuracy lost, at scale 1."""

    def __post_init__(self) -> None:
        if math.isnan(self.infeasible_reward) or self.infeasible_reward == math.inf:
            raise QuantenvError(
                f"infeasible_reward is {self.infeasible_reward}: expected a number or -inf (float('-inf'))."
            )

    def reward(self, reward: float, ratios: np.ndarray) -> float:
        """Returns `infeasible_reward` for an infeasible allocation."""
        return reward if (ratios <= 1 + TOLERANCE).all() else self.infeasible_reward


@dataclass
class Lagrangian(Constraint):
    """A soft constraint: reward - lambda * sum over budgets of max(0, cost / budget - 1).

    After each episode lambda climbs the dual by projected gradient ascent, lambda <- max(0, lambda +
    learning_rate * (violated - target)) with violated 0 or 1, as in reward constrained policy optimization
    (Tessler et al., ICLR 2019): it rises while more than the target share of episodes break a budget, and
    falls otherwise. It lives on from episode to episode and starts again when the environment is seeded.
    """

    initial: float = 1.0
    """Lambda of the first episode, >= 0."""
    learning_rate: float = 0.05
    """Step of lambda for one episode, >= 0; 0 keeps lambda fixed."""
    target: float = 0.1
    """Share of episodes that may break a budget, 0-1."""
    _lambda: float = field(init=False, repr=False)

    tells: ClassVar[tuple[str, ...]] = ("penalty_lambda",)

    def __post_init__(self) -> None:
        for name in ("initial", "learning_rate", "target"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise QuantenvError(f"{name} is {value}: expected a finite number >= 0.")
        if self.target > 1:
            raise QuantenvError(f"target is {self.target}: expected a share of episodes, from 0 to 1.")
        self.restart()

    def restart(self) -> None:
        """Sets lambda to its initial value."""
        self._lambda = self.initial

    def reward(self, reward: float, ratios: np.ndarray) -> float:
        """Returns the penalised reward, then moves lambda."""
        excess = np.where(ratios <= 1 + TOLERANCE, 0.0, ratios - 1)
        penalised = reward - self._lambda * float(excess.sum())
        violated = float(excess.any())
        self._lambda = max(0.0, self._lambda + self.learning_rate * (violated - self.target))
        return penalised

    def info(self) -> dict[str, float]:
        """Returns the lambda that prices this episode."""
        return {"penalty_lambda": self._lambda}


#: The constraints by name.
CONSTRAINTS: dict[str, type[Constraint]] = {
    "mask": Mask,
    "project": Project,
    "reject": Reject,
    "lagrangian": Lagrangian,
}


def make_constraint(name: str, options: Mapping[str, Any] | None = None) -> Constraint:
    """Makes a constraint from its name and options.

    Args:
        name: A name of `CONSTRAINTS`.
        options: Values of the constraint's fields; None leaves the defaults.

    Raises:
        QuantenvError: If the name or an option is unknown, or a value is out of range.
    """
    one_of(name, "constraint", CONSTRAINTS)
    known = [option.name for option in fields(CONSTRAINTS[name]) if option.init]
    values = {}
    for key, value in named(options, "constraint_options", "numbers").items():
        if not known:
            raise QuantenvError(f"Constraint {name!r} takes no options, but was given {key!r}: leave it out.")
        if key not in known:
            raise unknown_name(f"option of constraint {name!r}:", key, known)
        values[key] = real_number(value, key)
    return CONSTRAINTS[name](**values)
