"""The post-training evaluator: one prepared network, allocations swapped in."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from quantenv.allocation import Allocation
from quantenv.evaluate.base import Evaluation
from quantenv.files import content_hash
from quantenv.quantize import SCHEMES, QuantizedNetwork, calibrate_task
from quantenv.tasks import Split, Task

BATCH = 512


class PTQEvaluator:
    """Evaluates allocations after post-training quantization.

    Batch norms are folded, inputs and weights are channels-last, and the quantized weights of every bit-width are
    kept, so that changing the allocation copies nothing.

    Args:
        task: The task.

    Raises:
        UnsupportedLayerError: If the network cannot be quantized.
        QuantenvError: If the task asks for an unknown scheme, or its network puts out NaN.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.layers = task.layers
        self.network = QuantizedNetwork(calibrate_task(task))
        self.identity = content_hash(["ptq", SCHEMES[task.scheme], task.identity])
        self.reference = self.float_evaluation("search")

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations on a split.

        Raises:
            AllocationError: If an allocation is for other layers.
        """
        results = []
        for allocation in allocations:
            self.network.select(allocation)
            results.append(evaluate_logits(self.network, self.task.splits[split]))
        return results

    def float_evaluation(self, split: str) -> Evaluation:
        """Evaluates the float network."""
        return evaluate_logits(self.task.network, self.task.splits[split])


def evaluate_logits(network: Callable[[torch.Tensor], torch.Tensor], split: Split) -> Evaluation:
    """Evaluates a classifier on a split, in batches, without gradients.

    Args:
        network: Maps inputs (B, ...) to logits (B, classes).
        split: Samples.

    Returns:
        Correct predictions and mean cross-entropy (summed in double precision).
    """
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for inputs, labels in zip(split.inputs.split(BATCH), split.labels.split(BATCH), strict=True):
            logits = network(inputs)
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return Evaluation(correct=correct, samples=len(split), loss=loss / len(split))
