"""Simulated annealing from the proxy's answer (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983).

A step changes two random groups of tied layers: the first to any pair of bits, the second to any pair with which the
allocation meets the budgets, its present one included. Most good allocations use the budget up, so that a single raise
is not feasible and what helps is a swap. Of several random steps to unknown allocations the one
of least proxy harm is evaluated.

The same allocation has the same evaluation, so one that is known is never evaluated again: the walk accepts or rejects
it without being charged.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np

from agents.base import require_in_range
from agents.search.ask_tell import AskTellAgent, Results
from agents.search.choices import Choices, harm_of
from agents.search.ilp import solve
from agents.search.proxy import group_harms

#: Steps without meeting an unknown allocation, hot ones for the most part, after which the search is at its end.
LONGEST_WALK = 500

#: Highest temperature that heating leads to; at it every step is accepted.
HOTTEST = 10.0


@dataclass(frozen=True)
class AnnealingConfig:
    """Options of simulated annealing."""

    sensitivity: str = ""
    """Kind of sensitivity that measures harm; empty means the default of `quantenv.sensitivity.measure`."""
    temperature: float = 0.003
    """Temperature of the first evaluation: the rise of the objective, about that of the error (0-1), which is
    accepted with probability 1/e."""
    cooling: float = 0.99
    """Factor on the temperature for every evaluation."""
    heating: float = 1.1
    """Factor on the temperature for every step to a known allocation: where all around is known, the walk heats up."""
    screened: int = 16
    """Random steps of which the one of least proxy harm is evaluated; 1 leaves the proxy out."""

    def __post_init__(self) -> None:
        require_in_range(self, 0, math.inf, "temperature")
        require_in_range(self, 0, 1, "cooling")
        require_in_range(self, 1, math.inf, "heating", "screened")


class AnnealingAgent(AskTellAgent):
    """Simulated annealing over swaps of bits, from the proxy's answer on."""

    name: ClassVar[str] = "annealing"
    config_class: ClassVar[type] = AnnealingConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        self._choices = Choices(self.problem)
        self._temperature = self.config.temperature
        self._known: dict[bytes, float] = {}  # objectives by pick
        self._at: tuple[np.ndarray, float] | None = None  # where the walk is: pick (F,) and its objective

    @cached_property
    def _harms(self) -> np.ndarray:
        return self._choices.harms(group_harms(self.env, self.config.sensitivity or None))

    def ask(self, count: int) -> np.ndarray:
        """Proposes the next unknown allocation of the walk: one, since each step depends on the last."""
        if self._at is None:
            self._asked = solve(self._choices.knapsack(self._harms)).options
            return self._choices.actions(self._asked[None])
        for _ in range(LONGEST_WALK):
            steps = self._choices.swaps(np.tile(self._at[0], (self.config.screened, 1)), self.generator)
            unknown = steps[[step.tobytes() not in self._known for step in steps]]
            if len(unknown):
                self._asked = unknown[np.argmin(harm_of(self._harms, unknown))]
                return self._choices.actions(self._asked[None])
            self._visit(steps[0], self._known[steps[0].tobytes()])
            self._temperature = min(self._temperature * self.config.heating, HOTTEST)
        return np.empty((0, self.problem.n_decisions), dtype=np.int64)

    def tell(self, results: Results) -> None:
        """Accepts or rejects what was evaluated, and cools."""
        (pick,), (objective,) = self._choices.picks(results.actions), results.objective.tolist()
        self._known[pick.tobytes()] = self._known[self._asked.tobytes()] = objective
        self._visit(pick, objective)
        self._temperature *= self.config.cooling

    def metrics(self) -> dict[str, float]:
        """Returns the temperature and where the walk is."""
        assert self._at is not None
        return {"train/temperature": self._temperature, "train/objective": self._at[1]}

    def _visit(self, pick: np.ndarray, objective: float) -> None:
        """Moves to a pick (F,), or stays, by Metropolis's rule."""
        rise = -math.inf if self._at is None else objective - self._at[1]
        if rise <= 0 or self.generator.random() < math.exp(-rise / max(self._temperature, 1e-12)):
            self._at = pick, objective
