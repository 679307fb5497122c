"""Quantization-aware fine-tuning (QAT) of one allocation."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate.base import Evaluation
from quantenv.evaluate.ptq import evaluate_logits, numerics
from quantenv.files import content_hash
from quantenv.quantize import Quantizer, calibrate_task, parse_scheme, trainable_network
from quantenv.quantize.trained import activation_quantizer, weight_quantizer
from quantenv.tasks import Task

OnEpoch = Callable[[int, Mapping[str, float]], None]
#: Fields of a recipe that came after evaluations were first stored: at their defaults no part of an identity.
_LATER = ("weight_quantizer", "activation_quantizer")


@dataclass(frozen=True)
class FinetuneConfig:
    """Recipe of quantization-aware fine-tuning: trained quantizers, SGD, cosine schedule."""

    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 32
    """Samples of one step; the last, smaller batch of an epoch is dropped."""
    learning_rate: float = 0.005
    """Initial learning rate of weights and biases; decays to 0 by a cosine."""
    step_learning_rate: float = 0.1
    """Learning rate of the quantizers' steps as a fraction of `learning_rate`. LSQ's own 1 makes networks as small as
    the digits task's unstable: some allocations then ended below where they started."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Decay of the weights; biases and steps have none."""
    distillation: float = 0.5
    """Share of the loss that is the divergence from the float network's outputs (Hinton et al. 2015); 0 to 1."""
    seed: int = 0
    """Seed of the order of the training samples."""
    weight_quantizer: str | None = None
    """Rounds weights in training: lsq (learned steps), linear (constant steps), dorefa or k-means (fine-tuned
    centroids). By default lsq, or k-means where the scheme is."""
    activation_quantizer: str = "lsq"
    """Rounds activations in training: lsq, lsq+ (learned offsets, too), pact (learned clipping), linear or dorefa (both
    constant)."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 0, math.inf),
            ("batch_size", 1, math.inf),
            ("learning_rate", 0.0, math.inf),
            ("step_learning_rate", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("distillation", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise QuantenvError(f"Fine-tuning's {name} is {value}; expected a number from {low} to {high}.")
        if self.weight_quantizer is not None:
            weight_quantizer(self.weight_quantizer)
        activation_quantizer(self.activation_quantizer)

    @property
    def identity(self) -> str:
        """What of an evaluation's numbers the recipe fixes."""
        default = {field.name: field.default for field in fields(self)}
        return str({k: v for k, v in asdict(self).items() if k not in _LATER or v != default[k]})


@dataclass(frozen=True)
class FinetuneResult:
    """The best checkpoint of a fine-tuning, chosen on the search split."""

    task: Task
    network: nn.Module
    """The fine-tuned quantized network, in eval mode."""
    search: Evaluation
    """On the search split."""
    best_epoch: int
    """Epoch of the checkpoint; 0 is the network before training."""

    @cached_property
    def test(self) -> Evaluation:
        """On the test split, evaluated when first asked for and never used to choose."""
        return evaluate_logits(self.network, self.task.splits["test"])

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """State dict of the network: weights, biases and steps."""
        return dict(self.network.state_dict())


def finetune(
    task: Task,
    allocation: Allocation,
    config: FinetuneConfig | None = None,
    on_epoch: OnEpoch | None = None,
) -> FinetuneResult:
    """Fine-tunes one allocation on the training split.

    Quantizers start from calibration; batch norms stay folded (see `trainable_network`). After every epoch the network
    is evaluated on the search split and the best checkpoint kept, by accuracy, then loss. The same seed gives
    the same result to the bit on the same machine and thread count; no global random state is touched.

    Args:
        task: The task.
        allocation: Bits of its layers.
        config: The recipe.
        on_epoch: Called after each epoch, and for epoch 0 before training, with ``qat/train_loss`` (not for epoch
            0), ``qat/search_accuracy``, ``qat/search_loss`` and ``qat/learning_rate``.

    Returns:
        The best checkpoint.

    Raises:
        AllocationError: If the allocation is for another network.
        QuantenvError: If the loss becomes NaN, or a batch is larger than the training split.
    """
    config = config or FinetuneConfig()
    train = task.splits["train"]
    if config.batch_size > len(train):
        raise QuantenvError(
            f"Fine-tuning's batch_size is {config.batch_size}; the training split has only {len(train)} samples."
        )
    network = trainable_network(calibrate_task(task), allocation, config.weight_quantizer, config.activation_quantizer)
    with torch.inference_mode():
        teacher = torch.cat([task.network(batch) for batch in train.inputs.split(512)]).clone()
    optimizer = torch.optim.SGD(
        _parameter_groups(network, config),
        config.learning_rate,
        config.momentum,
        nesterov=config.momentum > 0,
    )
    batches = len(train) // config.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.epochs * batches))
    generator = torch.Generator().manual_seed(config.seed)

    best, best_epoch, best_state = _search_evaluation(network, task), 0, _copy_state(network)
    _report(on_epoch, 0, best, config.learning_rate)
    for epoch in range(1, config.epochs + 1):
        network.train()
        total = 0.0
        order = torch.randperm(len(train), generator=generator)[: batches * config.batch_size]
        for indices in order.split(config.batch_size):
            logits = network(train.inputs[indices])  # (B, classes)
            loss = (1 - config.distillation) * F.cross_entropy(logits, train.labels[indices])
            if config.distillation:
                soft = teacher[indices].softmax(1)
                loss = loss + config.distillation * F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if not math.isfinite(total):
            raise QuantenvError(
                f"Fine-tuning diverged in epoch {epoch}: the loss is not finite. Lower the learning rate "
                f"({config.learning_rate})."
            )
        evaluation = _search_evaluation(network, task)
        if (-evaluation.correct, evaluation.loss) < (-best.correct, best.loss):
            best, best_epoch, best_state = evaluation, epoch, _copy_state(network)
        _report(on_epoch, epoch, evaluation, float(schedule.get_last_lr()[0]), total / batches)
    network.load_state_dict(best_state)
    return FinetuneResult(task, network.eval(), best, best_epoch)


class FinetuneEvaluator:
    """Evaluates each allocation after a short fine-tuning, as HAQ does (one epoch by default).

    Args:
        task: The task.
        config: The recipe of every evaluation; the default is one epoch of `FinetuneConfig`.
    """

    def __init__(self, task: Task, config: FinetuneConfig | None = None) -> None:
        self.task = task
        self.config = config or FinetuneConfig(epochs=1)
        self.layers = task.layers
        self.identity = content_hash(
            ["finetune", parse_scheme(task.scheme).version, task.identity, self.config.identity, *numerics()]
        )
        self.reference = evaluate_logits(task.network, task.splits["search"])

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Fine-tunes each allocation from the float network, then evaluates it on a split."""
        results = []
        for allocation in allocations:
            result = finetune(self.task, allocation, self.config)
            results.append(evaluate_logits(result.network, self.task.splits[split]))
        return results


def _parameter_groups(network: nn.Module, config: FinetuneConfig) -> list[dict[str, object]]:
    quantizers = [module for module in network.modules() if isinstance(module, Quantizer)]
    steps = [step for quantizer in quantizers for step in quantizer.steps() if not quantizer.decayed]
    decayed = [step for quantizer in quantizers for step in quantizer.steps() if quantizer.decayed]
    taken = {id(step) for step in steps + decayed}
    rest = [p for p in network.parameters() if id(p) not in taken]
    rate = config.learning_rate * config.step_learning_rate
    groups: list[dict[str, object]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1]},
        {"params": steps, "lr": rate},
        {"params": decayed, "lr": rate, "weight_decay": config.weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _search_evaluation(network: nn.Module, task: Task) -> Evaluation:
    network.eval()
    return evaluate_logits(network, task.splits["search"])


def _copy_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(network.state_dict()))


def _report(
    on_epoch: OnEpoch | None, epoch: int, evaluation: Evaluation, rate: float, train_loss: float | None = None
) -> None:
    if on_epoch is not None:
        metrics = {
            "qat/search_accuracy": evaluation.accuracy,
            "qat/search_loss": evaluation.loss,
            "qat/learning_rate": rate,
        }
        on_epoch(epoch, metrics if train_loss is None else {**metrics, "qat/train_loss": train_loss})
