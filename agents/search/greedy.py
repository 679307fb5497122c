"""Greedy by sensitivity per cost: the rule of thumb behind most hand-made allocations.

The harm of an allocation is taken to be the sum of its layers' sensitivities, and each step makes the change of one
group of tied layers that has the best ratio of harm to cost. This is Dantzig's greedy rule for the knapsack (Operations
Research 5, 1957), in the multiple-choice form of Sinha and Zoltners (Operations Research 27, 1979): a step may go to
any other pair of bits, so that it follows the convex hull where harms are not convex in the bits; or it gives all
groups that read one tensor the same activation bits, without which that tensor does not shrink. Costs are shares of
the budgets, added up if there are several, as over the steps of a maximum. Both directions give one answer, for one
evaluation.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.search.ask_tell import AskTellAgent
from agents.search.choices import Choices, harm_of
from agents.search.proxy import group_harms


@dataclass(frozen=True)
class GreedyConfig:
    """Options of both greedy agents."""

    sensitivity: str = ""
    """Kind of sensitivity that measures harm; empty means the default of `quantenv.sensitivity.measure`."""


def descend(choices: Choices, harms: np.ndarray) -> np.ndarray:
    """Starts from the most bits and takes the step of least harm per cost saved until every budget is met.

    What is saved is counted as far as budgets are exceeded: dropping below them is worth nothing.

    Args:
        choices: What can be picked.
        harms: Harm of each group's pairs, float64 (F, P).

    Returns:
        A feasible pick, int64 (F,); the cheapest one if no step saves any more.
    """
    pick = choices.highest()
    while not choices.feasible(pick[None])[0]:
        steps = choices.steps(pick)
        saved = _excess(choices, pick[None]) - _excess(choices, steps)
        steps, saved = steps[saved > 0], saved[saved > 0]
        if not len(steps):
            return choices.cheapest()
        pick = steps[np.argmin((harm_of(harms, steps) - harm_of(harms, pick[None])) / saved)]
    return pick


def ascend(choices: Choices, harms: np.ndarray) -> np.ndarray:
    """Starts from the least cost and takes the step of most harm removed per cost added while one is feasible.

    Args:
        choices: What can be picked.
        harms: Harm of each group's pairs, float64 (F, P).

    Returns:
        A feasible pick, int64 (F,), from which no single step removes harm within the budgets.
    """
    pick = choices.cheapest()
    while True:
        steps = choices.steps(pick)
        removed = harm_of(harms, pick[None]) - harm_of(harms, steps)
        worth = (removed > 0) & choices.feasible(steps)
        if not worth.any():
            return pick
        steps, removed = steps[worth], removed[worth]
        added = (choices.loads(steps) - choices.loads(pick[None])).sum(axis=1)
        ratio = np.where(added > 0, removed / np.where(added > 0, added, 1.0), np.inf)
        pick = steps[np.lexsort((-removed, -ratio))[0]]  # among steps that cost nothing, the one that removes most


def _excess(choices: Choices, picks: np.ndarray) -> np.ndarray:
    """Shares of the budgets that picks (k, F) take above the whole, summed, float64 (k,)."""
    return np.maximum(choices.loads(picks) - 1, 0).sum(axis=1)


class _GreedyAgent(AskTellAgent):
    config_class: ClassVar[type] = GreedyConfig
    _answered = False

    def ask(self, count: int) -> np.ndarray:
        """Proposes the answer, once."""
        if self._answered:
            return np.empty((0, self.problem.n_decisions), dtype=np.int64)
        self._answered = True
        choices = Choices(self.problem)
        harms = choices.harms(group_harms(self.env, self.config.sensitivity or None))
        return choices.actions(self._solve(choices, harms)[None])

    @abstractmethod
    def _solve(self, choices: Choices, harms: np.ndarray) -> np.ndarray:
        """Returns the answer's pick, int64 (F,)."""


class GreedyDownAgent(_GreedyAgent):
    """Greedy from the most bits down until the budget is met: least sensitivity per cost saved first."""

    name: ClassVar[str] = "greedy-down"

    def _solve(self, choices: Choices, harms: np.ndarray) -> np.ndarray:
        return descend(choices, harms)


class GreedyUpAgent(_GreedyAgent):
    """Greedy from the fewest bits up while the budget is met: most sensitivity per cost added first."""

    name: ClassVar[str] = "greedy-up"

    def _solve(self, choices: Choices, harms: np.ndarray) -> np.ndarray:
        return ascend(choices, harms)
