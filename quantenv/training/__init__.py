"""Quantization-aware fine-tuning (QAT) of one allocation."""

import importlib
from typing import TYPE_CHECKING, Any

from quantenv.training.config import FinetuneConfig

if TYPE_CHECKING:
    from quantenv.training.evaluator import FinetuneEvaluator
    from quantenv.training.finetuning import FinetuneResult, OnEpoch, check_recipe, finetune

__all__ = ["FinetuneConfig", "FinetuneEvaluator", "FinetuneResult", "OnEpoch", "check_recipe", "finetune"]

#: What needs torch, by the module that it is in.
_WITH_TORCH = {
    "FinetuneEvaluator": "quantenv.training.evaluator",
    "FinetuneResult": "quantenv.training.finetuning",
    "OnEpoch": "quantenv.training.finetuning",
    "check_recipe": "quantenv.training.finetuning",
    "finetune": "quantenv.training.finetuning",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
