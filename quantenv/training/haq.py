"""HAQ's evaluation of an allocation: one epoch of fine-tuning (Wang et al., CVPR 2019; mit-han-lab/haq).

The recipe is that of the published `rl_quantize.py` and `linear_quantize_env.py`. Unlike `quantenv.training`, it
learns no steps, has no teacher and no schedule, and keeps the last weights, not the best.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation, fitting
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.locks import Lock
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import evaluate_float, evaluate_logits, numerics
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.optimizers import SGD
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Task
from quantenv.tasks.activations import activations_of
from quantenv.tasks.base import Split
from quantenv.training.qat.network import trainable_network
from quantenv.training.qat.norms import check_statistics

#: Constants of the published code, by their names there.
TRAIN_SIZE, DATA_BSIZE, FINETUNE_LR, MOMENTUM, WEIGHT_DECAY = 20_000, 128, 0.001, 0.9, 4e-5


class HAQFinetuneEvaluator:
    """Fine-tunes each allocation from the float network for one epoch, then evaluates it.

    Batch norms are folded; HAQ's are trained along. K-means codebooks are fine-tuned where the
    task's scheme has them; else steps stay as calibrated.
    """

    def __init__(self, task: Task, training_accuracy: bool = False) -> None:
        """Makes the evaluator.

        Args:
            task: The task.
            training_accuracy: What evaluations on the search split are instead: counts and losses on the training
                images, each when its batch is drawn, as the reward of HAQ's linear mode is in the published code.
        """
        self.task = task
        self.training_accuracy = training_accuracy
        self.layers = task.layers
        train = task.splits["train"]
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:TRAIN_SIZE]
        self._train = Split(train.inputs[order], train.labels[order])
        recipe = [TRAIN_SIZE, DATA_BSIZE, FINETUNE_LR, MOMENTUM, WEIGHT_DECAY, training_accuracy]
        start = calibrate_task(task).content_hash
        self.identity = content_hash(
            ["haq-finetune-2", parse_scheme(task.scheme).version, task.identity, start, str(recipe), *numerics()]
        )
        self._lock = Lock()
        self.reference = (
            evaluate_logits(task.network, self._train) if training_accuracy else evaluate_float(task, "search")
        )

    @property
    def activations(self) -> Activations:
        """The network's stored tensors and products, which costs follow."""
        return activations_of(self.task)

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Fine-tunes each allocation, then evaluates it on a split.

        Raises:
            AllocationError: If an allocation is for other layers.
            QuantenvError: If the loss becomes NaN, or the last batch is of one sample of which a batch norm sees one
                value.
        """
        results = []
        data = self.task.split(split)
        for allocation in fitting(allocations, self.layers):
            with self._lock:
                network, training = self._finetune(allocation)
            if self.training_accuracy and split == "search":
                results.append(training)
            else:
                results.append(evaluate_logits(network.eval(), data))
        return results

    def _finetune(self, allocation: Allocation) -> tuple[nn.Module, Evaluation]:
        weights = "k-means" if parse_scheme(self.task.scheme).weights == "k-means" else "linear"
        network = trainable_network(calibrate_task(self.task), allocation, weights, "linear")
        if len(self._train) % DATA_BSIZE == 1:
            check_statistics(network, self._train.inputs[:1])
        optimizer = SGD(network.parameters(), FINETUNE_LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
        correct, total = 0, 0.0
        batches = zip(self._train.inputs.split(DATA_BSIZE), self._train.labels.split(DATA_BSIZE), strict=True)
        for inputs, labels in batches:
            logits = network(inputs)  # (B, classes)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += int((logits.detach().argmax(dim=1) == labels).sum())
            total += loss.item() * len(labels)
        if not math.isfinite(total):
            raise QuantenvError(
                f"HAQ's fine-tuning of weight bits {allocation.weight_bits} diverged: use --evaluator finetune."
            )
        return network, Evaluation(correct, len(self._train), total / len(self._train))


def training_accuracy_evaluator(task: Task) -> HAQFinetuneEvaluator:
    """Makes the evaluator whose reward is training accuracy."""
    return HAQFinetuneEvaluator(task, training_accuracy=True)
