"""quantenv: the reinforcement-learning benchmark and toolkit for mixed-precision quantization.

Importing it registers the environment ids with Gymnasium and imports no torch. `quantenv.search` and `quantenv.resume`
are a thin door to `experiments.runs.python_api`, which stands above this package and is imported when one is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from quantenv.envs.registration import register_environments

if TYPE_CHECKING:
    from experiments.runs.python_api import SearchResult as SearchResult
    from experiments.runs.python_api import resume as resume
    from experiments.runs.python_api import search as search

__version__ = "0.1.0"

register_environments()

_ABOVE = ("SearchResult", "resume", "search")


def __getattr__(name: str) -> Any:
    """Imports what stands above this package, when it is first asked for."""
    if name in _ABOVE:
        return getattr(importlib.import_module("experiments.runs.python_api"), name)
    raise AttributeError(f"module 'quantenv' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists what the package offers."""
    return sorted((*globals(), *_ABOVE))
