"""What is quantized: networks, data splits, pretrained weights, and the registry of tasks."""

import functools
import importlib

from quantenv.errors import unknown_name
from quantenv.tasks.base import SPLITS, Split, Task
from quantenv.tasks.datasets import task_from_datasets

__all__ = ["SPLITS", "Split", "Task", "get_task", "task_descriptions", "task_from_datasets", "task_names"]

#: Registered tasks: name -> (factory as "module:function", one-line description).
_TASKS = {
    "digits": (
        "quantenv.tasks.digits:make_digits",
        "scikit-learn's 8x8 digits, depthwise-separable network with a residual add, 8 layers, 3,144 weights",
    ),
    "resnet20": (
        "quantenv.tasks.resnet20:make_resnet20",
        "ResNet-20 on CIFAR-10 recompressed as JPEG, 20 layers; needs data in $QUANTENV_DATA",
    ),
}


def task_names() -> tuple[str, ...]:
    """Returns the names of the registered tasks."""
    return tuple(_TASKS)


def task_descriptions() -> dict[str, str]:
    """Returns a line about each registered task, without making any."""
    return {name: description for name, (_, description) in _TASKS.items()}


@functools.cache
def get_task(name: str) -> Task:
    """Makes a registered task; its float network is trained or loaded from the cache.

    Args:
        name: A name from `task_names`.

    Returns:
        The task; the same object for the same name.

    Raises:
        QuantenvError: If no such task is registered.
    """
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS)
    module, _, factory = _TASKS[name][0].partition(":")
    task: Task = getattr(importlib.import_module(module), factory)()
    return task
