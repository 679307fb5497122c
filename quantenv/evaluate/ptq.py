"""The post-training evaluator: one prepared network, allocations swapped in."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from quantenv.allocation import Allocation
from quantenv.evaluate.base import Evaluation
from quantenv.files import content_hash
from quantenv.quantize import SCHEMES, QuantizedNetwork, calibrate_task
from quantenv.tasks import Split, Task

#: Bytes of a network's largest stored tensor for one batch: larger batches leave the processor's caches. On ResNet-20,
#: 1,000 images at once take 1.6 times as long as batches of 64.
BATCH_BYTES = 4 << 20


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
        self.batch = batch_size(self.network)
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
            results.append(evaluate_logits(self.network, self.task.splits[split], self.batch))
        return results

    def float_evaluation(self, split: str) -> Evaluation:
        """Evaluates the float network."""
        return evaluate_logits(self.task.network, self.task.splits[split], self.batch)


def batch_size(network: QuantizedNetwork) -> int:
    """Returns how many samples to run at once, so that a stored tensor takes at most `BATCH_BYTES`."""
    largest = max(site.features for site in network.calibration.sites)
    return max(1, BATCH_BYTES // (4 * largest))


def evaluate_logits(network: Callable[[torch.Tensor], torch.Tensor], split: Split, batch: int = 256) -> Evaluation:
    """Evaluates a classifier on a split, in batches, without gradients.

    Args:
        network: Maps inputs (B, ...) to logits (B, classes).
        split: Samples.
        batch: Samples run at once.

    Returns:
        Correct predictions and mean cross-entropy (summed in double precision).
    """
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
            logits = network(inputs)
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return Evaluation(correct=correct, samples=len(split), loss=loss / len(split))
