"""How good an allocation is: evaluators by name."""

import importlib
from typing import TYPE_CHECKING

from quantenv.errors import QuantenvError, unknown_name
from quantenv.evaluate.base import Evaluation, Evaluator
from quantenv.evaluate.table import EvaluationTable
from quantenv.evaluate.table_evaluator import TABULATED, TableEvaluator

if TYPE_CHECKING:
    from quantenv.evaluate.store import EvaluationStore
    from quantenv.tasks import Task

__all__ = ["Evaluation", "Evaluator", "evaluator_names", "make_evaluator"]

#: Evaluators by name, as "module:class", so that naming one imports no torch.
_EVALUATORS = {
    "ptq": "quantenv.evaluate.ptq:PTQEvaluator",
    "ptq-float": "quantenv.evaluate.ptq:float_evaluator",
    "ptq-integer": "quantenv.evaluate.ptq:integer_evaluator",
    "finetune": "quantenv.finetune:FinetuneEvaluator",
}


def evaluator_names() -> tuple[str, ...]:
    """Returns the names that `make_evaluator` takes."""
    return tuple(_EVALUATORS)


def make_evaluator(
    name: str, task: "Task | EvaluationTable", store: "EvaluationStore | str | None" = None
) -> Evaluator:
    """Makes an evaluator for a task, which asks the store before it computes; or looks its answers up in a table.

    Args:
        name: ``ptq`` (post-training quantization; ``ptq-float`` and ``ptq-integer`` fix the arithmetic) or ``finetune``
            (a short fine-tuning for each evaluation, as HAQ).
        task: The task, or a table of its evaluations.
        store: Where evaluations are kept: an open store, an SQLAlchemy URL, the path of an SQLite file, or ``off``.
            By default the user's: ``$QUANTENV_STORE``, or a file in the user's data directory. Tables need none.

    Returns:
        The evaluator.

    Raises:
        QuantenvError: If no evaluator has this name, the table does not hold its answers, or the store cannot be
            opened.
    """
    if name not in _EVALUATORS:
        raise unknown_name("evaluator", name, _EVALUATORS)
    if isinstance(task, EvaluationTable):
        if name != TABULATED:
            raise QuantenvError(
                f"Table {task.name!r} holds evaluations by {TABULATED!r}, not by {name!r}: leave the evaluator out, or "
                f"use task {task.task!r} itself."
            )
        return TableEvaluator(task)
    module, _, attribute = _EVALUATORS[name].partition(":")
    evaluator: Evaluator = getattr(importlib.import_module(module), attribute)(task)
    from quantenv.evaluate.stored import through_store  # SQLAlchemy: only where something is evaluated

    return through_store(evaluator, store, task.name)
