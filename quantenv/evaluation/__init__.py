"""How good an allocation is: evaluators by name."""

import functools
import importlib
from typing import TYPE_CHECKING

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.evaluation.base import Evaluation, Evaluator
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TABULATED, TableEvaluator

if TYPE_CHECKING:
    from quantenv.evaluation.pool.pool import PoolEvaluator
    from quantenv.evaluation.store.store import EvaluationStore
    from quantenv.tasks import Task

__all__ = ["Evaluation", "Evaluator", "evaluator_names", "make_evaluator", "make_pool"]

#: Evaluators by name, as "module:class", so that naming one imports no torch. Those that train need all of a task.
_EVALUATORS = {
    "ptq": "quantenv.evaluation.post_training:PTQEvaluator",
    "ptq-float": "quantenv.evaluation.post_training:float_evaluator",
    "ptq-integer": "quantenv.evaluation.post_training:integer_evaluator",
    "finetune": "quantenv.training:FinetuneEvaluator",
    "finetune-haq": "quantenv.training.haq:HAQFinetuneEvaluator",
    "finetune-haq-train": "quantenv.training.haq:training_accuracy_evaluator",
}
_TRAINING = ("finetune", "finetune-haq", "finetune-haq-train")


def evaluator_names() -> tuple[str, ...]:
    """Returns the names that `make_evaluator` takes."""
    return tuple(_EVALUATORS)


def make_evaluator(
    name: str, task: "Task | EvaluationTable", store: "EvaluationStore | str | None" = None
) -> Evaluator:
    """Makes an evaluator for a task, which asks the store before it computes; or looks its answers up in a table.

    Args:
        name: ``ptq`` (post-training quantization; ``ptq-float`` and ``ptq-integer`` fix the arithmetic), ``finetune``
            (a short fine-tuning for each evaluation), ``finetune-haq`` (HAQ's), or ``finetune-haq-train`` (the same,
            evaluated on the training images).
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
    from quantenv.evaluation.store.stored import through_store  # SQLAlchemy: only where something is evaluated

    return through_store(evaluator, store, task.name)


def make_pool(
    name: str,
    task: "Task | EvaluationTable",
    store: "EvaluationStore | str | None" = None,
    workers: int = 2,
    threads: int | None = None,
    pool: str = "processes",
    address: str | None = None,
) -> "PoolEvaluator":
    """Makes an evaluator that computes with several workers, each with an evaluator of its own.

    Its evaluations are those of `make_evaluator`, to the bit, and so is its identity. Close it, or use it as a context
    manager.

    Args:
        name: As for `make_evaluator`.
        task: The task; it is sent to the workers, with its prepared network.
        store: As for `make_evaluator`. Workers on other machines need one that they can reach, such as PostgreSQL.
        workers: Processes or actors, at least 1.
        threads: Threads of torch in each; by default the cores of this machine, divided among the workers.
        pool: ``processes`` on this machine, or ``ray``: actors on a Ray cluster.
        address: Ray cluster to join; by default that of ``$RAY_ADDRESS``, or a new one on this machine.

    Returns:
        The evaluator.

    Raises:
        QuantenvError: If a name is unknown, a number is out of range, the task is a table, the store cannot be opened,
            or the workers cannot start.
    """
    from quantenv.evaluation.pool.pool import PoolEvaluator, with_prepared, without_training
    from quantenv.evaluation.pool.workers import check_pool, start_workers
    from quantenv.evaluation.store.store import EvaluationStore, open_store

    check_pool(pool, address)
    if name not in _EVALUATORS:
        raise unknown_name("evaluator", name, _EVALUATORS)
    if isinstance(task, EvaluationTable):
        raise QuantenvError(f"Evaluations are looked up in table {task.name!r}, so workers have nothing to do: use 1.")
    opened = store if isinstance(store, EvaluationStore) else open_store(store)
    sent = with_prepared(task) if name in _TRAINING else without_training(task)
    make = functools.partial(make_evaluator, name, sent, opened or "off")
    return PoolEvaluator(start_workers(make, workers, threads, pool, address), opened)
