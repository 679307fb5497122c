"""The exact solution of the proxy as agents: its one answer, and its next best ones verified live.

The answer is HAWQ-V3's: allocate by an integer linear program over sensitivities. How good it is depends on how well
the sum of sensitivities ranks allocations; verifying the N best by evaluating them mends what the ranking gets wrong
near its top.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np

from agents.base import require_in_range
from agents.search.ask_tell import AskTellAgent
from agents.search.choices import Choices
from agents.search.ilp import solve
from agents.search.knapsack import Knapsack
from agents.search.next_best import next_best
from agents.search.proxy import group_harms


@dataclass(frozen=True)
class ILPConfig:
    """Options of the proxy's answer."""

    sensitivity: str = ""
    """Kind of sensitivity that measures harm; empty means the default of `quantenv.sensitivity.measure`."""


class ILPAgent(AskTellAgent):
    """The exact optimum of the additive proxy: one allocation, for one evaluation.

    There is nothing else to propose, so that any further evaluations are charged for the same allocation.
    """

    name: ClassVar[str] = "ilp"
    config_class: ClassVar[type] = ILPConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        self._choices = Choices(self.problem)
        self._asked = False

    def ask(self, count: int) -> np.ndarray:
        """Proposes the optimum, once.

        Raises:
            InfeasibleBudgetError: If no allocation meets the budgets.
        """
        if self._asked:
            return np.empty((0, self.problem.n_decisions), dtype=np.int64)
        self._asked = True
        best = solve(proxy_knapsack(self._choices, self.env, self.config.sensitivity))
        return self._choices.actions(best.options[None])


@dataclass(frozen=True)
class ILPTopConfig(ILPConfig):
    """Options of the proxy's best answers."""

    first: int = 64
    """Solutions that are enumerated at first; ten times as many whenever they are used up."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, 1_000_000, "first")


class ILPTopAgent(AskTellAgent):
    """The N best solutions of the additive proxy, evaluated in the order of their proxy harm.

    Once every feasible allocation has been proposed, further evaluations are charged for the best one found.
    """

    name: ClassVar[str] = "ilp-top"
    config_class: ClassVar[type] = ILPTopConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        self._choices = Choices(self.problem)
        self._asked: set[bytes] = set()
        self._waiting: list[np.ndarray] = []
        self._enumerated = 0
        self._exhausted = False

    @cached_property
    def _knapsack(self) -> Knapsack:
        return proxy_knapsack(self._choices, self.env, self.config.sensitivity)

    def ask(self, count: int) -> np.ndarray:
        """Proposes the next best solutions.

        Raises:
            InfeasibleBudgetError: If no allocation meets the budgets.
        """
        while len(self._waiting) < count and not self._exhausted:
            self._enumerate()
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asked |= {pick.tobytes() for pick in batch}
        return self._choices.actions(np.array(batch, dtype=np.int64).reshape(-1, len(self._choices.open)))

    def _enumerate(self) -> None:
        """Lists more solutions than before, leaving out what was proposed: among ties the order may change."""
        wanted = 10 * self._enumerated or self.config.first
        found = [solution.options for solution in next_best(self._knapsack, wanted)]
        self._exhausted = len(found) < wanted
        self._enumerated = wanted
        self._waiting = [pick for pick in found if pick.tobytes() not in self._asked]


def proxy_knapsack(choices: Choices, env: gymnasium.Env, sensitivity: str = "") -> Knapsack:
    """Returns the additive proxy of an environment as a problem whose options are `choices.pairs`.

    Args:
        choices: The environment's choices.
        env: The environment.
        sensitivity: Kind of sensitivity; empty means the default.
    """
    return choices.knapsack(choices.harms(group_harms(env, sensitivity or None)))
