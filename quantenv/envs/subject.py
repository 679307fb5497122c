"""What an environment is about: whose layers are quantized, what prices them, and what is known of them."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from quantenv.core.activations import Activations, chain
from quantenv.core.errors import QuantenvError, shown
from quantenv.evaluation.base import Evaluator, known_activations
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.sensitivity.kinds import Settings, shown_evaluations

if TYPE_CHECKING:
    from quantenv.envs.walk import Walk
    from quantenv.evaluation.post_training import PTQEvaluator
    from quantenv.sensitivity import Sensitivity
    from quantenv.tasks import Task

TaskLike = Union[str, "Task", EvaluationTable, None]


class Subject:
    """A task, or a table of one, and an evaluator. A task given by name is made when something needs it."""

    def __init__(self, task: TaskLike, evaluator: str | Evaluator, store: str | None = None) -> None:
        """Finds the evaluator.

        Args:
            task: A registered name, a Task, a table, or None.
            evaluator: A registered name, or an Evaluator.
            store: Where a registered evaluator's results are kept; see `quantenv.evaluation.make_evaluator`.

        Raises:
            QuantenvError: If a name is unknown, or the evaluator needs a task and there is none.
        """
        if not (task is None or isinstance(task, str | EvaluationTable) or hasattr(task, "network")):
            raise QuantenvError(
                f"task is {shown(task)}: expected a name, a table or a Task, which quantenv.tasks.task_from_datasets "
                "makes of a network and data."
            )
        self._task = task
        self.evaluator = self._find(evaluator, store)
        """What prices allocations in accuracy."""
        self.table: EvaluationTable | None = None
        """The table in which evaluations are looked up, if they are."""
        if isinstance(self._task, EvaluationTable):
            self.table = self._task
        elif isinstance(self.evaluator, TableEvaluator):
            self.table = self.evaluator.table

    @property
    def origin(self) -> tuple[str, str]:
        """Name of the task and scheme, for allocations to carry; empty if no task was needed."""
        if self.table is not None:
            return self.table.task, self.table.scheme
        if self._task is None or isinstance(self._task, str | EvaluationTable):
            return "", ""
        return self._task.name, self._task.scheme

    @property
    def codebooks(self) -> bool:
        """Whether weights are stored as indices into a codebook of their layer, which then counts in its size."""
        return self.origin[1].split("+")[0] == "k-means"

    def activations(self) -> Activations:
        """Returns the network's stored tensors and products.

        An evaluator object that does not know them, without a table or a Task, tells of layers only: they are then
        taken to follow one another.

        Raises:
            UnsupportedLayerError: If the network cannot be traced.
        """
        if self.table is not None:
            return self.table.activations
        known = known_activations(self.evaluator)
        if known is not None:
            return known
        if self._task is None or isinstance(self._task, str | EvaluationTable):
            return chain(self.evaluator.layers)
        from quantenv.tasks.activations import activations_of

        return activations_of(self._task)

    def sensitivity(self) -> np.ndarray:
        """Returns the task's sensitivity, float64 (L,), measured if it was not yet.

        Raises:
            QuantenvError: If there is no task.
        """
        if self.table is not None:
            return self.table.sensitivity
        from quantenv.sensitivity import layer_sensitivity

        return layer_sensitivity(self._through)

    @cached_property
    def sensitivity_evaluations(self) -> float:
        """What `sensitivity` costs to measure, in evaluations; of a table what it cost when the table was made.

        Raises:
            QuantenvError: If there is no task.
        """
        if self.table is not None:
            return shown_evaluations(len(self.table.layers))
        task = self._network_task("the observation shows a sensitivity and none was given")
        return shown_evaluations(len(task.layers), Settings.images, len(task.splits["search"]))

    def check_measurable(self) -> None:
        """Checks that there is something that an observation's sensitivity can be measured of.

        Raises:
            QuantenvError: If there is not.
        """
        if self.table is None:
            self._network_task("the observation shows a sensitivity and none was given")

    @property
    def measurable(self) -> bool:
        """Whether there is a task or a table whose sensitivities can be measured."""
        return self._task is not None or self.table is not None

    def measure(self, kind: str | None = None, offered: np.ndarray | None = None) -> "Sensitivity":
        """Returns the harm of each layer at each bit-width, measured if it was not yet.

        Args:
            kind: A kind of sensitivity; None means the default of the task or table.
            offered: Which bits are measured; see `quantenv.sensitivity.measure`.

        Raises:
            QuantenvError: If there is no task, or the kind is unknown or cannot be measured on it.
        """
        from quantenv.sensitivity import measure

        return measure(self._through if self.table is None else self.table, kind, offered=offered)

    @cached_property
    def _through(self) -> "PTQEvaluator":
        """What sensitivities are measured through: the post-training evaluator behind the environment's, or a new one.

        Evaluators that ask another one hold it as ``evaluator``.

        Raises:
            QuantenvError: If there is no task.
        """
        from quantenv.evaluation.post_training import PTQEvaluator  # torch

        evaluator: Any = self.evaluator
        while hasattr(evaluator, "evaluator"):
            evaluator = evaluator.evaluator
        if isinstance(evaluator, PTQEvaluator):
            return evaluator
        return PTQEvaluator(self._network_task("its sensitivity was asked for"))

    def _network_task(self, purpose: str) -> "Task":
        """Returns the task, which is no table."""
        task = self.resolve(purpose)
        assert not isinstance(task, EvaluationTable)
        return task

    def check_walk(self, walk: "Walk") -> None:
        """Checks that a table holds every allocation that an episode can end with.

        Raises:
            QuantenvError: If it does not.
        """
        table = self.table
        if table is None:
            return
        if walk.members != table.members:
            raise QuantenvError(
                f"tied differs from the groups of table {table.name!r}, {[list(group) for group in table.groups]}: "
                "leave it out."
            )
        held = np.zeros(walk.allowed.shape[1:], dtype=bool)
        held[np.array(table.bits) - 1, table.activation_bits - 1] = True
        if (walk.allowed & ~held).any():
            raise QuantenvError(
                f"Table {table.name!r} holds weight bits {', '.join(map(str, table.bits))} beside "
                f"{table.activation_bits}-bit activations: choose bits and pins among them, with decisions='weights', "
                f"or use task {table.task!r} itself."
            )

    def _find(self, evaluator: str | Evaluator, store: str | None) -> Evaluator:
        if isinstance(evaluator, str):
            from quantenv.evaluation import make_evaluator

            return make_evaluator(evaluator, self.resolve(f"evaluator={evaluator!r} needs one"), store)
        if isinstance(evaluator, type) or not all(
            hasattr(evaluator, name) for name in ("evaluate", "layers", "reference")
        ):
            raise QuantenvError(
                f"evaluator is {shown(evaluator)}: expected a name such as 'ptq', or an Evaluator object."
            )
        return evaluator

    def resolve(self, purpose: str) -> "Task | EvaluationTable":
        """Returns the task or table, made now if it was given by name.

        Args:
            purpose: What needs it, for the message.

        Raises:
            QuantenvError: If there is none.
        """
        if self._task is None:
            raise QuantenvError(f"task is None, but {purpose}: give a task.")
        if isinstance(self._task, str):
            from quantenv.evaluation.table.shipped import resolve_task  # torch: only where one is needed

            self._task = resolve_task(self._task)
        return self._task
