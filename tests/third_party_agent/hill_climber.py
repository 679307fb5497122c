"""An agent of a third party: climbs from the fewest bits, one decision at a time.

What searches allocations rather than learn a policy need only say what to evaluate next: `AskTellAgent` does the rest.
Agents that learn a policy implement `agents.base.Agent` instead.
"""

from dataclasses import dataclass

import numpy as np

from agents.base import require_in_range
from agents.search.ask_tell import AskTellAgent


@dataclass(frozen=True)
class HillClimberConfig:
    """Options of the hill climber. Every one needs a default and a docstring: `quantenv agents` shows them."""

    neighbours: int = 4
    """Candidates tried around the best one at a time."""

    def __post_init__(self):
        require_in_range(self, 1, 32, "neighbours")


class HillClimber(AskTellAgent):
    """Tries random changes of one decision of the best allocation so far."""

    name = "hill-climber"
    config_class = HillClimberConfig

    def ask(self, count):
        """Proposes up to `count` candidates: rows of one option index per decision, the lowest bits at 0."""
        lowest = np.zeros(self.problem.n_decisions, dtype=np.int64)
        if self.best is None:
            return lowest[None]
        candidates = np.tile(self.best.actions, (min(count, self.config.neighbours), 1))
        for candidate in candidates:  # all randomness comes from self.generator, so that runs resume by being replayed
            candidate[self.generator.integers(len(candidate))] = self.generator.integers(self.problem.n_actions)
        fits = self.problem.feasible(candidates)
        return np.where(fits[:, None], candidates, lowest)
