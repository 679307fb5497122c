"""Which layers hurt: measured once per task on the search split, kept, and used by states, proxies and solvers."""

import importlib
from typing import TYPE_CHECKING, Any

from quantenv.sensitivity.kinds import DEFAULT, Sensitivity, Settings
from quantenv.sensitivity.measuring import kinds, measure

if TYPE_CHECKING:
    from quantenv.evaluation.channel_groups import channel_sensitivity, group_channels
    from quantenv.sensitivity.divergence import layer_sensitivity

__all__ = [
    "DEFAULT",
    "Sensitivity",
    "Settings",
    "channel_sensitivity",
    "group_channels",
    "kinds",
    "layer_sensitivity",
    "measure",
]

#: What needs torch, by the module that it is in.
_WITH_TORCH = {
    "channel_sensitivity": "quantenv.evaluation.channel_groups",
    "group_channels": "quantenv.evaluation.channel_groups",
    "layer_sensitivity": "quantenv.sensitivity.divergence",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
