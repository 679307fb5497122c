"""Tasks that others bring: a function by name, or an entry point of another distribution."""

import dataclasses
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from quantenv.core.errors import QuantenvError
from quantenv.core.own_code import own_function, reason_of

if TYPE_CHECKING:
    from quantenv.tasks.base import Task

#: Entry point group in which other distributions name their tasks: ``name = "module:make_task"``.
ENTRY_POINTS = "quantenv.tasks"


def third_party() -> dict[str, EntryPoint]:
    """Returns the entry points of other distributions by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)}


def description(entry: EntryPoint) -> str:
    """Returns a line about an entry point, without importing it."""
    return f"{entry.value}{_origin(entry)}"


def make_own_task(name: str) -> "Task":
    """Makes a task of a function without arguments.

    Args:
        name: An entry point's name, or ``module:function``.

    Returns:
        The task, of that name: what it is found by again.

    Raises:
        QuantenvError: If the function cannot be imported, fails or makes no task.
    """
    from quantenv.tasks.base import Task

    entry = third_party().get(name)
    try:
        function = own_function(name, "task") if entry is None else entry.load()
    except QuantenvError:
        raise
    except Exception as error:  # importing runs the third party's code, which may fail in any way
        raise QuantenvError(
            f"Task {name!r} is registered as {entry.value!r}{_origin(entry)} but cannot be imported: "  # type: ignore
            f"{reason_of(error)}. Repair or uninstall that distribution."
        ) from error
    try:
        task = function()
    except QuantenvError:
        raise
    except Exception as error:  # the function is the user's, which may fail in any way
        raise QuantenvError(f"Task {name!r} cannot be made: {reason_of(error)}.") from error
    if not isinstance(task, Task):
        raise QuantenvError(
            f"Task {name!r} is to be made by a function that returned a {type(task).__name__}; expected a "
            "quantenv.tasks.Task, as quantenv.tasks.task_from_datasets makes one."
        )
    return task if task.name == name else dataclasses.replace(task, name=name)


def _origin(entry: EntryPoint) -> str:
    return f" of distribution {entry.dist.name!r}" if entry.dist else ""
