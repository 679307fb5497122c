"""Which layers hurt: measured once per task on the search split, kept, and used by states, proxies and solvers."""

from typing import TYPE_CHECKING, Any

from quantenv.sensitivity.kinds import DEFAULT, Sensitivity, Settings
from quantenv.sensitivity.measuring import kinds, measure

if TYPE_CHECKING:
    from quantenv.sensitivity.divergence import layer_sensitivity

__all__ = ["DEFAULT", "Sensitivity", "Settings", "kinds", "layer_sensitivity", "measure"]


def __getattr__(name: str) -> Any:
    """Imports `layer_sensitivity`, which needs torch, when it is first asked for."""
    if name == "layer_sensitivity":
        from quantenv.sensitivity.divergence import layer_sensitivity

        return layer_sensitivity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
