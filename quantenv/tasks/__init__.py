"""What is quantized: networks, data splits, pretrained weights, and the registry of tasks."""

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.locks import PREPARING
from quantenv.core.own_code import is_function_name
from quantenv.tasks.own import description, make_own_task, third_party
from quantenv.tasks.source import TaskSource

if TYPE_CHECKING:
    from quantenv.tasks.base import SPLITS, Split, Task
    from quantenv.tasks.data.datasets import task_from_datasets

__all__ = [
    "SPLITS",
    "Split",
    "Task",
    "TaskSource",
    "get_task",
    "is_task",
    "task_descriptions",
    "task_from_datasets",
    "task_names",
]

#: What needs torch, by the module that it is in.
_WITH_TORCH = {
    "SPLITS": "quantenv.tasks.base",
    "Split": "quantenv.tasks.base",
    "Task": "quantenv.tasks.base",
    "task_from_datasets": "quantenv.tasks.data.datasets",
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
    """Returns the names of the registered tasks, those of other distributions (group ``quantenv.tasks``) included."""
    return tuple(dict.fromkeys((*_TASKS, *third_party())))


def task_descriptions() -> dict[str, str]:
    """Returns a line about each registered task, without making any."""
    others = {name: description(entry) for name, entry in third_party().items()}
    return others | {name: task.description for name, task in _TASKS.items()}


def is_task(name: str) -> bool:
    """Whether a task is registered under a name, or the name is that of a function of the user's."""
    return name in task_names() or is_function_name(name)


def get_task(name: str, source: TaskSource | None = None) -> "Task":
    """Makes a registered task, or one of the user's; its float network is loaded.

    Args:
        name: A name from `task_names`; or ``module:function``, a function of yours without arguments that returns the
            task.
        source: What the user brings, for tasks that do not bring it themselves.

    Returns:
        The task; the same object for the same name and source.

    Raises:
        QuantenvError: If no such task is registered, it is made of other things, or a function of the user's cannot be
            imported, fails or returns no task.
    """
    if not is_task(name):
        raise unknown_name("task", name, task_names())
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
    if source.prepared is not None:
        raise QuantenvError(
            f"Task {name!r} is made here without what was prepared of it: leave --prepared out. In Python, "
            "quantenv.evaluation.preparing.bringing hands it over."
        )
    for option in source.given:
        if name not in _TASKS or option not in _TASKS[name].takes:
            able = ", ".join(other for other, task in _TASKS.items() if option in task.takes)
            raise QuantenvError(f"Task {name!r} takes no --{option}: leave it out, or use one that does ({able}).")


@functools.cache
def _make(name: str, source: TaskSource) -> "Task":
    if name not in _TASKS:
        return make_own_task(name)
    module, _, function = _TASKS[name].factory.partition(":")
    factory = getattr(importlib.import_module(module), function)
    task: Task = factory(source) if _TASKS[name].takes else factory()
    return task
