"""The evaluator that fine-tunes each allocation."""

import dataclasses
from collections.abc import Sequence

from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation, fitting
from quantenv.core.files import content_hash
from quantenv.core.locks import Lock
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import evaluate_float, evaluate_logits, numerics
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Task
from quantenv.tasks.activations import activations_of
from quantenv.training.compilation import resolve
from quantenv.training.config import FinetuneConfig
from quantenv.training.finetuning import finetune


class FinetuneEvaluator:
    """Evaluates each allocation after a short fine-tuning, as HAQ does (one epoch by default).

    Whether it compiles is decided once, by the steps of one allocation, and is part of its identity.

    Args:
        task: The task.
        config: The recipe of every evaluation; the default is one epoch of `FinetuneConfig`.
    """

    def __init__(self, task: Task, config: FinetuneConfig | None = None) -> None:
        self.task = task
        config = config or FinetuneConfig(epochs=1)
        if config.compile == "auto":
            steps = config.epochs * (len(task.splits["train"]) // config.batch_size)
            config = dataclasses.replace(config, compile=resolve(config, calibrate_task(task), steps))
        self.config = config
        self.layers = task.layers
        start = calibrate_task(task).content_hash
        self.identity = content_hash(
            ["finetune-3", parse_scheme(task.scheme).version, task.identity, start, self.config.identity, *numerics()]
        )
        self.reference = evaluate_float(task, "search")
        self._lock = Lock()

    @property
    def activations(self) -> Activations:
        """The network's stored tensors and products, which costs follow."""
        return activations_of(self.task)

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Fine-tunes each allocation from the float network, then evaluates it on a split."""
        results = []
        data = self.task.split(split)
        for allocation in fitting(allocations, self.layers):
            with self._lock:
                result = finetune(self.task, allocation, self.config)
            results.append(evaluate_logits(result.network, data))
        return results
