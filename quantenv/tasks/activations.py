"""What a task's network stores and multiplies, found once."""

import functools
from typing import TYPE_CHECKING

from quantenv.core.activations import Activations
from quantenv.core.locks import PREPARING

if TYPE_CHECKING:
    from quantenv.tasks import Task
from quantenv.graph.activations import find_activations


def activations_of(task: "Task") -> Activations:
    """Returns what a task's network stores and multiplies; its network is traced once.

    Raises:
        UnsupportedLayerError: If it cannot be traced.
    """
    with PREPARING:
        return _activations_of(task)


@functools.lru_cache(maxsize=4)
def _activations_of(task: "Task") -> Activations:
    return find_activations(task.network, task.splits["calibration"].inputs[:1])
