"""The additive proxy of a task for `quantenv solve`: its problem, and what a solution of it is in bits."""

from typing import Any

import numpy as np

from agents.search.choices import Choices
from agents.search.knapsack import Solution
from agents.search.problem import Problem
from agents.search.proxy import group_harms, measured_sensitivity
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.subject import TaskLike


class TaskProxy:
    """A task's sensitivities and costs as a knapsack. Nothing is evaluated but what measuring sensitivities needs."""

    def __init__(self, task: TaskLike, metric: Any, budget: Any, sensitivity: str | None, **settings: Any) -> None:
        """Makes the task's environment and measures its sensitivities, or reads them where they were measured.

        Args:
            task: A task, or a table of one; or a name or path of it.
            metric: What is bounded; see `QuantizationEnv`.
            budget: The bounds.
            sensitivity: A kind of sensitivity; None means the default.
            **settings: Further arguments of `QuantizationEnv`.

        Raises:
            QuantenvError: If a name is unknown or a value out of range.
            InfeasibleBudgetError: If no allocation meets the budget.
        """
        self.env = QuantizationEnv(task, metric=metric, budget=budget, observation="haq", store="off", **settings)
        self._problem = Problem(self.env)
        self._choices = Choices(self._problem)
        self._sensitivity = sensitivity
        self.knapsack = self._choices.knapsack(self._choices.harms(group_harms(self.env, sensitivity)))
        """The problem over the groups that are decided; costs are shares of the budgets."""

    def description(self) -> dict[str, Any]:
        """Returns what the problem is, as JSON."""
        task, scheme = self.env.origin
        measured = measured_sensitivity(self.env, self._sensitivity)
        return {
            "task": task,
            "scheme": scheme,
            "device": self.env.device.name,
            "sensitivity": measured.kind,
            "sensitivity_identity": measured.identity,
        }

    def described(self, solution: Solution) -> dict[str, Any]:
        """Returns a solution as JSON: bits of each layer (weight, activation), harm of those decided, costs in SI."""
        bits = self._bits(solution)
        weights, activations = bits.T.tolist()
        return {
            "bits": bits.tolist(),
            "objective": solution.objective,
            "cost": {metric: table.cost(weights, activations) for metric, table in self.env.tables.items()},
        }

    def allocation(self, solution: Solution) -> Allocation:
        """Returns a solution as an allocation."""
        weights, activations = self._bits(solution).T.tolist()
        return Allocation.make(self.env.layers, weights, activations, *self.env.origin)

    def _bits(self, solution: Solution) -> np.ndarray:
        """Returns the bits of every layer, int64 (L, 2)."""
        actions = self._choices.actions(solution.options[None])
        return self.env.walk.per_layer(self._problem.bits(actions)[0])
