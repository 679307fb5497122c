"""The shipped evaluation tables, by the names under which they are tasks."""

import dataclasses
import functools
import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.evaluation.table.evaluation_table import EvaluationTable

if TYPE_CHECKING:
    from quantenv.tasks import Task, TaskSource


@dataclass(frozen=True)
class ShippedTable:
    """Where a table lies and what is in it."""

    file: str
    """File in `quantenv.evaluation.table.data`."""
    task: str
    """The task that was enumerated."""
    description: str
    """One line."""


#: The shipped tables by name.
TABLES = {
    "digits_table": ShippedTable(
        "digits.npz", "digits", "all 65,536 weight allocations of digits with 2, 4, 6 or 8 bits, evaluated"
    ),
    "resnet20_table": ShippedTable(
        "resnet20.npz", "resnet20", "ResNet-20 on CIFAR-10, tied into 8 groups, 2, 4, 6 or 8 bits: 65,536 evaluated"
    ),
}


def table_names() -> tuple[str, ...]:
    """Returns the names of the shipped tables."""
    return tuple(TABLES)


def table_descriptions() -> dict[str, str]:
    """Returns a line about each shipped table, without reading any."""
    return {name: table.description for name, table in TABLES.items()}


def is_table(name: str) -> bool:
    """Whether a task's name stands for a table: a shipped one's, or the path of a file that ends with ``.npz``."""
    return name in TABLES or name.endswith(".npz")


def get_table(name: str) -> EvaluationTable:
    """Reads a table.

    Args:
        name: A name from `table_names`, or the path of a table's file.

    Returns:
        The table; the same object for the same shipped table.

    Raises:
        QuantenvError: If there is no such table, its file is missing, or it is damaged.
    """
    if not is_table(name):
        raise unknown_name("table", name, TABLES)
    return _shipped(name) if name in TABLES else EvaluationTable.load(name)


def resolve_task(name: str, source: "TaskSource | None" = None, scheme: str | None = None) -> "Task | EvaluationTable":
    """Returns a table or a task by name.

    Args:
        name: A registered name, the path of a table, or ``module:function`` of the user's.
        source: Data, network and weights of a task that does not bring its own, its channel groups, and what was
            prepared of it.
        scheme: Its quantization scheme; None means its own.

    Raises:
        QuantenvError: If neither is called that, a table cannot be read or was made under another scheme, a task is
            made of other things, or what was prepared is of another network or scheme.
    """
    if is_table(name):
        if source is not None and source.given:
            raise QuantenvError(f"Table {name!r} holds all that is known of its task: leave --{source.given[0]} out.")
        table = get_table(name)
        if scheme not in (None, table.scheme):
            raise QuantenvError(
                f"Table {name!r} holds evaluations under scheme {table.scheme!r}, not {scheme!r}: leave --scheme out, "
                f"or use task {table.task!r} itself."
            )
        return table
    from quantenv.tasks import get_task, is_task, task_names  # torch, which tables do without

    if not is_task(name):
        raise unknown_name("task", name, (*task_names(), *TABLES))
    from quantenv.evaluation.channel_groups import grouped_as
    from quantenv.evaluation.preparing import bringing
    from quantenv.quantization.prepared import read_prepared

    task = get_task(name, None if source is None else source.bare)
    if scheme not in (None, task.scheme):
        task = dataclasses.replace(task, scheme=scheme)
    if source is not None and source.prepared is not None:
        task = bringing(task, read_prepared(Path(source.prepared)))
    return grouped_as(task, source)  # which channels are sensitive depends on how they are rounded


def network_task(name: str) -> str:
    """Returns the name of the task whose network a task's name is about: for a table the one that was enumerated."""
    return get_table(name).task if is_table(name) else name


@functools.cache
def _shipped(name: str) -> EvaluationTable:
    shipped = TABLES[name]
    with importlib.resources.as_file(
        importlib.resources.files("quantenv.evaluation.table.data") / shipped.file
    ) as path:
        if not path.is_file():
            raise QuantenvError(
                f"The table of {name!r} is not installed: {path} is missing. Install quantenv with its package data, "
                f"or make it: quantenv enumerate --task {shipped.task} --output {path}"
            )
        return EvaluationTable.load(path)
