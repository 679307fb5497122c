"""How far an allocation is from the best feasible one of a table."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from quantenv.core.errors import QuantenvError
from quantenv.envs.walk import Walk
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.optimum import optimum, standard_error
from quantenv.hardware import Budget, CostTable, PeakMemory


class Regret:
    """Compares evaluations on the search split with the best feasible allocation that an episode could end with."""

    tells: ClassVar[tuple[str, ...]] = ("regret", "regret_loss", "regret_standard_error")
    """Names of what `info` returns."""

    def __init__(
        self,
        table: EvaluationTable | None,
        budgets: Sequence[Budget],
        costs: Mapping[str, CostTable | PeakMemory],
        walk: Walk,
    ) -> None:
        """Finds the optimum.

        Args:
            table: The table, whose groups are the walk's.
            budgets: The budgets.
            costs: The cost tables.
            walk: The decisions: the optimum is among the options, pins included.

        Raises:
            QuantenvError: If there is no table.
        """
        if table is None:
            raise QuantenvError(
                "regret=True needs every allocation's evaluation: use a table task, such as 'digits_table', or an "
                "evaluator that is a TableEvaluator."
            )
        self.optimum = optimum(table, budgets, costs, allowed=walk.allowed[walk.group_of])
        """The best feasible allocation."""
        self.standard_error = standard_error(self.optimum.best.evaluation)
        """Binomial standard error of its accuracy, 0-1."""

    def info(self, evaluation: Evaluation, feasible: bool) -> dict[str, float]:
        """Returns what the last info of an episode says; inf where the allocation is infeasible."""
        best = self.optimum.best.evaluation
        return {
            "regret": best.accuracy - evaluation.accuracy if feasible else math.inf,
            "regret_loss": evaluation.loss - best.loss if feasible else math.inf,
            "regret_standard_error": self.standard_error,
        }
