"""NSGA-II with two objectives (Deb et al., IEEE TEC 6, 2002), by Optuna: one run gives a front.

What single-objective NSGA-II (`agents.search.optuna_agents`) does of a budget, this one does of all of them at once:
it minimises error plus a tenth of the loss and the share of the budget that an allocation takes. The budget only bounds
the front. `quantenv pareto` makes this agent; it is not registered, because the one answer that an agent is asked for
would be its most accurate allocation.
"""

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from agents.search.ask_tell import Results
from agents.search.optuna_agents import NSGA2Agent
from quantenv.core.errors import QuantenvError

if TYPE_CHECKING:
    import optuna


class NSGA2FrontAgent(NSGA2Agent):
    """NSGA-II over error and cost: the non-dominated allocations of its trials are the front."""

    name: ClassVar[str] = "nsga2-front"

    @cached_property
    def _study(self) -> "optuna.Study":
        if self.problem.budgets != 1:
            raise QuantenvError(f"A front is about one cost, not {self.problem.budgets}: give one metric.")
        with self._optuna.quiet():
            sampler = self._sampler(int(self.generator.integers(2**31)))
        choosy = self._optuna.ChoosySampler(sampler, self._parameters.distributions, self._choose)
        name = f"quantenv-{self.name}-seed{self._seed}"
        study = self._optuna.create_study(self.config.storage, name, choosy, objectives=2)
        study.set_user_attr("bits", self._parameters.bits)
        return study

    def tell(self, results: Results) -> None:
        """Tells the study what was executed: the objective of `Results` and the share of the budget."""
        picks = self._choices.picks(results.actions)
        loads = self._choices.loads(picks).max(axis=1).tolist()
        objectives = zip(results.objective.tolist(), loads, strict=True)
        with self._optuna.quiet():
            for (trial, asked), pick, values in zip(self._asked, picks, objectives, strict=True):
                if np.array_equal(asked, pick):
                    self._study.tell(trial, values)
                else:
                    self._study.tell(trial, state=self._optuna.TrialState.FAIL)
                    self._study.add_trial(self._optuna.executed_trial(self._parameters, pick, *values))
                self._known.add(pick.tobytes())
                self._best = min(self._best, values[0])
