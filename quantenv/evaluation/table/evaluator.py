"""The evaluator that looks evaluations up in a table."""

from collections.abc import Sequence

from quantenv.core.allocation import Allocation, several
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import content_hash
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.evaluation_table import EvaluationTable

#: The evaluator whose answers tables hold.
TABULATED = "ptq"


class TableEvaluator:
    """Evaluates allocations by looking them up.

    Args:
        table: The table; it must hold the search split.

    Raises:
        QuantenvError: If it does not.
    """

    def __init__(self, table: EvaluationTable) -> None:
        if "search" not in table.reference:
            raise QuantenvError(f"Table {table.name!r} does not hold the search split, which rewards come from.")
        self.table = table
        self.layers = table.layers
        self.activations = table.activations
        self.reference = table.reference["search"]
        self.identity = content_hash(["table", table.hash])

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Looks allocations up, one evaluation for each, in order.

        Raises:
            AllocationError: If an allocation is for other layers, or not in the table.
            QuantenvError: If the table does not hold this split.
        """
        table = self.table
        return [table.evaluation(table.index(allocation), split) for allocation in several(allocations)]

    def float_evaluation(self, split: str) -> Evaluation:
        """Returns the float network's evaluation on a split of the table.

        Raises:
            QuantenvError: If the table does not hold this split.
        """
        if split not in self.table.reference:
            raise unknown_name(f"split of table {self.table.name!r}:", split, self.table.reference)
        return self.table.reference[split]
