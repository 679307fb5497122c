"""Which layers hurt: measured once per task on the search split."""

from quantenv.sensitivity.divergence import layer_sensitivity

__all__ = ["layer_sensitivity"]
