"""How good an allocation is: evaluators by name."""

import importlib
from typing import TYPE_CHECKING

from quantenv.errors import unknown_name
from quantenv.evaluate.base import Evaluation, Evaluator

if TYPE_CHECKING:
    from quantenv.tasks import Task

__all__ = ["Evaluation", "Evaluator", "evaluator_names", "make_evaluator"]

#: Evaluators by name, as "module:class", so that naming one imports no torch.
_EVALUATORS = {
    "ptq": "quantenv.evaluate.ptq:PTQEvaluator",
    "finetune": "quantenv.finetune:FinetuneEvaluator",
}


def evaluator_names() -> tuple[str, ...]:
    """Returns the names that `make_evaluator` takes."""
    return tuple(_EVALUATORS)


def make_evaluator(name: str, task: "Task") -> Evaluator:
    """Makes an evaluator for a task.

    Args:
        name: ``ptq`` (post-training quantization) or ``finetune`` (a short fine-tuning for each evaluation, as HAQ).
        task: The task.

    Returns:
        The evaluator.

    Raises:
        QuantenvError: If no evaluator has this name.
    """
    if name not in _EVALUATORS:
        raise unknown_name("evaluator", name, _EVALUATORS)
    module, _, attribute = _EVALUATORS[name].partition(":")
    evaluator: Evaluator = getattr(importlib.import_module(module), attribute)(task)
    return evaluator
