"""Quantization-aware fine-tuning (QAT) of one allocation."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate.base import Evaluation
from quantenv.evaluate.ptq import evaluate_logits
from quantenv.finetune.augmentation import augment
from quantenv.finetune.checkpoint import Checkpoint
from quantenv.finetune.compilation import resolve
from quantenv.finetune.config import FinetuneConfig
from quantenv.finetune.session import Session, is_better
from quantenv.quantize import Quantizer, calibrate_task, trainable_network
from quantenv.quantize.calibration import Calibration
from quantenv.quantize.trainable import reestimate_trained
from quantenv.tasks import Task

logger = logging.getLogger(__name__)

OnEpoch = Callable[[int, Mapping[str, float]], None]


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
    checkpoint: Path | None = None,
    between_steps: Callable[[], object] | None = None,
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
            0), ``qat/search_accuracy``, ``qat/search_loss`` and ``qat/learning_rate``. Where a checkpoint is taken
            over, its epochs are reported first.
        checkpoint: File that is written after every epoch, and taken over if it is of the same task, allocation and
            recipe: the result is then, to the bit, that of a fine-tuning that was never interrupted. It stays.
        between_steps: Called after every step; if it raises, the checkpoint is written first.

    Returns:
        The best checkpoint.

    Raises:
        AllocationError: If the allocation is for another network.
        QuantenvError: If the loss becomes NaN, a batch is larger than the training split, images are to be augmented
            and inputs are none, it is always to be compiled and cannot be, or the checkpoint is damaged.
    """
    config = config or FinetuneConfig()
    train = task.splits["train"]
    if config.batch_size > len(train):
        raise QuantenvError(
            f"Fine-tuning's batch_size is {config.batch_size}; the training split has only {len(train)} samples."
        )
    batches = len(train) // config.batch_size
    calibration = calibrate_task(task)
    fused = resolve(config, calibration, config.epochs * batches)
    network = trainable_network(calibration, allocation, config.weight_quantizer, config.activation_quantizer, fused)
    if config.bf16:
        for module in network.modules():
            if isinstance(module, Quantizer):
                module.register_forward_pre_hook(_in_float32)
    session = Session(network, config, batches)
    saved = Checkpoint(checkpoint, task, allocation, config)
    state = saved.load()
    if state is not None:
        session.restore(state)
        logger.info("Going on with %s at epoch %d, step %d.", checkpoint, session.epoch, session.step)
    for epoch, metrics in enumerate(session.history):
        _report(on_epoch, epoch, metrics)
    loss_of = _Loss(task, config, session.generator)
    while session.epoch <= config.epochs:
        if session.epoch > 0:
            network.train()
            for indices in session.batches_of(len(train)):
                session.learn(loss_of(network, indices))
                if between_steps is not None:
                    try:
                        between_steps()
                    except BaseException:
                        saved.save(session.state())
                        raise
        metrics = session.end_epoch(_search_evaluation(session.evaluated, task))
        saved.save(session.state())
        _report(on_epoch, session.epoch - 1, metrics)
    return _result(task, session, calibration if config.batch_norm else None, network)


class _Loss:
    """The loss of a batch of the training split."""

    def __init__(self, task: Task, config: FinetuneConfig, generator: torch.Generator) -> None:
        self.task, self.train, self.config, self.generator = task, task.splits["train"], config, generator
        self.teacher: torch.Tensor | None = None
        if config.distillation and not config.augmented:  # the same images in every epoch: the teacher's outputs, too
            with torch.inference_mode():
                self.teacher = torch.cat([task.network(batch) for batch in self.train.inputs.split(512)]).clone()

    def __call__(self, network: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Returns the loss, 0-d, of the samples at `indices` (B,)."""
        config, inputs = self.config, self.train.inputs[indices]
        if config.augmented:
            inputs = augment(inputs, config.crop, config.flip, self.generator)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.bf16):
            logits = network(inputs).float()  # (B, classes)
        loss = (1 - config.distillation) * F.cross_entropy(logits, self.train.labels[indices])
        if config.distillation:
            soft = self._teacher(inputs, indices).softmax(1)
            loss = loss + config.distillation * F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return loss

    def _teacher(self, inputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if self.teacher is not None:
            return self.teacher[indices]
        with torch.no_grad():
            logits: torch.Tensor = self.task.network(inputs)
        return logits


def _result(task: Task, session: Session, calibration: Calibration | None, network: fx.GraphModule) -> FinetuneResult:
    """Returns the best network, with re-estimated batch norms where they are asked for and better."""
    assert session.best is not None
    network.load_state_dict(session.best_state)
    best = session.best
    if calibration is not None:
        reestimate_trained(network.eval(), calibration)
        again = _search_evaluation(network, task)
        kept = is_better(again, best)
        logger.info(
            "Batch norms estimated again: %.2f%% on the search split after %.2f%%; %s.",
            100 * again.accuracy,
            100 * best.accuracy,
            "kept" if kept else "not kept",
        )
        if kept:
            best = again
        else:
            network.load_state_dict(session.best_state)
    return FinetuneResult(task, network.eval(), best, session.best_epoch)


def _in_float32(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(argument.float() for argument in arguments)


def _search_evaluation(network: nn.Module, task: Task) -> Evaluation:
    network.eval()
    return evaluate_logits(network, task.splits["search"])


def _report(on_epoch: OnEpoch | None, epoch: int, metrics: Mapping[str, float]) -> None:
    if on_epoch is not None:
        on_epoch(epoch, metrics)
