"""quantenv: the reinforcement-learning benchmark and toolkit for mixed-precision quantization.

Importing it registers the environment ids with Gymnasium and imports no torch: the names that it offers are imported
when they are first asked for. `search` and `resume` are a thin door to `experiments.runs`, which stands above this
package.
"""

import importlib
from typing import TYPE_CHECKING, Any

from quantenv.envs.registration import register_environments

if TYPE_CHECKING:
    from experiments.runs.python_api import SearchResult, resume, search
    from quantenv.core.allocation import Allocation
    from quantenv.core.errors import QuantenvError
    from quantenv.envs.environment import QuantizationEnv
    from quantenv.tasks import get_task
    from quantenv.tasks.base import Task
    from quantenv.tasks.data.datasets import task_from_datasets
    from quantenv.training.config import FinetuneConfig
    from quantenv.training.finetuning import finetune

__all__ = [
    "Allocation",
    "FinetuneConfig",
    "QuantenvError",
    "QuantizationEnv",
    "SearchResult",
    "Task",
    "finetune",
    "get_task",
    "resume",
    "search",
    "task_from_datasets",
]

__version__ = "0.1.0"

#: Where each name is defined.
_DEFINED = {
    "Allocation": "quantenv.core.allocation",
    "FinetuneConfig": "quantenv.training.config",
    "QuantenvError": "quantenv.core.errors",
    "QuantizationEnv": "quantenv.envs.environment",
    "SearchResult": "experiments.runs.python_api",
    "Task": "quantenv.tasks.base",
    "finetune": "quantenv.training.finetuning",
    "get_task": "quantenv.tasks",
    "resume": "experiments.runs.python_api",
    "search": "experiments.runs.python_api",
    "task_from_datasets": "quantenv.tasks.data.datasets",
}

register_environments()


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first asked for."""
    if name in _DEFINED:
        return getattr(importlib.import_module(_DEFINED[name]), name)
    raise AttributeError(f"module 'quantenv' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists what the package offers."""
    return sorted({*globals(), *__all__})
