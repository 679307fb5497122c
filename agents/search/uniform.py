"""Best uniform: the same bits in every layer that is decided, which is what people do who do not search.

All uniform allocations that meet the budgets are evaluated, in descending bits; there are at most as many as bit
options, or their pairs where activations are decided too. What an engineer would take is the best of them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from agents.search.ask_tell import AskTellAgent
from agents.search.choices import Choices


@dataclass(frozen=True)
class UniformConfig:
    """The best uniform allocation has no options."""


class UniformAgent(AskTellAgent):
    """Best uniform allocation: every feasible one is tried, in descending bits."""

    name: ClassVar[str] = "uniform"
    config_class: ClassVar[type] = UniformConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        choices = Choices(self.problem)
        everywhere = np.flatnonzero(choices.open.all(axis=0))[::-1]
        picks = np.repeat(everywhere[:, None], len(choices.open), axis=1)
        self._left = choices.actions(picks[choices.feasible(picks)])

    def ask(self, count: int) -> np.ndarray:
        """Proposes the next of them."""
        asked, self._left = self._left[:count], self._left[count:]
        return asked
