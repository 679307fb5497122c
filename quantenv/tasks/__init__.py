"""What is quantized: networks, data splits, pretrained weights, and the registry of tasks."""

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantenv.errors import QuantenvError, unknown_name
from quantenv.locks import PREPARING
from quantenv.tasks.source import TaskSource

if TYPE_CHECKING:
    from quantenv.tasks.base import SPLITS, Split, Task
    from quantenv.tasks.datasets import task_from_datasets

__all__ = [
    "SPLITS",
    "Split",
    "Task",
    "TaskSource",
    "get_task",
    "task_descriptions",
    "task_from_datasets",
    "task_names",
]

#: What needs torch, by the module that it is in.
_WITH_TORCH = {
    "SPLITS": "quantenv.tasks.base",
    "Split": "quantenv.tasks.base",
    "Task": "quantenv.tasks.base",
    "task_from_datasets": "quantenv.tasks.datasets",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Registered:
    """A task by name: how it is made."""

    factory: str
    """``module:function``; it takes a `TaskSource` if `takes` names anything."""
    description: str
    """One line."""
    takes: tuple[str, ...] = ()
    """Fields of a `TaskSource` that have a meaning for it."""


#: Registered tasks by name.
_TASKS = {
    "digits": Registered(
        "quantenv.tasks.digits:make_digits",
        "scikit-learn's 8x8 digits, depthwise-separable network with a residual add, 8 layers, 3,144 weights",
    ),
    "resnet20": Registered(
        "quantenv.tasks.resnet20:make_resnet20",
        "ResNet-20 on CIFAR-10 recompressed as JPEG, 20 layers; needs data in $QUANTENV_DATA",
    ),
    "imagefolder": Registered(
        "quantenv.tasks.imagefolder:make_imagefolder",
        "your images, a folder for each class, and any network: --data, --model, --weights",
        ("data", "model", "weights", "image_size", "max_images"),
    ),
    "cifar10": Registered(
        "quantenv.tasks.small_images:make_cifar10",
        "CIFAR-10, downloaded or from --data; --model resnet20, 32, 56 or mobilenet_v2, see `quantenv pretrain`",
        ("data", "model", "weights"),
    ),
    "cifar100": Registered(
        "quantenv.tasks.small_images:make_cifar100",
        "CIFAR-100, as cifar10",
        ("data", "model", "weights"),
    ),
    "fashionmnist": Registered(
        "quantenv.tasks.small_images:make_fashionmnist",
        "FashionMNIST, as cifar10",
        ("data", "model", "weights"),
    ),
    "mnist": Registered(
        "quantenv.tasks.small_images:make_mnist",
        "MNIST's digits, as cifar10",
        ("data", "model", "weights"),
    ),
}


def task_names() -> tuple[str, ...]:
    """Returns the names of the registered tasks."""
    return tuple(_TASKS)


def task_descriptions() -> dict[str, str]:
    """Returns a line about each registered task, without making any."""
    return {name: task.description for name, task in _TASKS.items()}


def get_task(name: str, source: TaskSource | None = None) -> "Task":
    """Makes a registered task; its float network is trained or loaded from the cache.

    Args:
        name: A name from `task_names`.
        source: What the user brings, for tasks that do not bring it themselves.

    Returns:
        The task; the same object for the same name and source.

    Raises:
        QuantenvError: If no such task is registered, or it is made of other things.
    """
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS)
    source = source or TaskSource()
    check_source(name, source)
    with PREPARING:
        return _make(name, source)


def check_source(name: str, source: TaskSource) -> None:
    """Checks that a registered task is made of what the user brings.

    Raises:
        QuantenvError: If it has no use for some of it.
    """
    if source.channel_groups is not None:
        raise QuantenvError(
            f"Task {name!r} is made with whole layers here: leave --channel_groups out. In Python, "
            "quantenv.sensitivity.group_channels cuts them afterwards."
        )
    for option in source.given:
        if option not in _TASKS[name].takes:
            able = ", ".join(other for other, task in _TASKS.items() if option in task.takes)
            raise QuantenvError(f"Task {name!r} takes no --{option}: leave it out, or use one that does ({able}).")


@functools.cache
def _make(name: str, source: TaskSource) -> "Task":
    module, _, function = _TASKS[name].factory.partition(":")
    factory = getattr(importlib.import_module(module), function)
    task: Task = factory(source) if _TASKS[name].takes else factory()
    return task
