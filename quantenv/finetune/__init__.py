"""Quantization-aware fine-tuning (QAT) of one allocation."""

from quantenv.finetune.config import FinetuneConfig
from quantenv.finetune.evaluator import FinetuneEvaluator
from quantenv.finetune.training import FinetuneResult, OnEpoch, finetune

__all__ = ["FinetuneConfig", "FinetuneEvaluator", "FinetuneResult", "OnEpoch", "finetune"]
