"""Quantization-aware fine-tuning (QAT) of one allocation."""

import importlib
from typing import TYPE_CHECKING, Any

from quantenv.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from quantenv.finetune.evaluator import FinetuneEvaluator
    from quantenv.finetune.training import FinetuneResult, OnEpoch, check_recipe, finetune

__all__ = ["FinetuneConfig", "FinetuneEvaluator", "FinetuneResult", "OnEpoch", "check_recipe", "finetune"]

#: What needs torch, by the module that it is in.
_WITH_TORCH = {
    "FinetuneEvaluator": "quantenv.finetune.evaluator",
    "FinetuneResult": "quantenv.finetune.training",
    "OnEpoch": "quantenv.finetune.training",
    "check_recipe": "quantenv.finetune.training",
    "finetune": "quantenv.finetune.training",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
