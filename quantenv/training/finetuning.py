"""Quantization-aware fine-tuning (QAT) of one allocation."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import fx, nn

from quantenv.core.allocation import MAX_BITS, Allocation, fitting
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import evaluate_logits, float_batch
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.calibration import Calibration
from quantenv.tasks import Split, Task
from quantenv.training.checkpoint import Checkpoint
from quantenv.training.compilation import resolve
from quantenv.training.config import LIVE, NETWORK, NEVER, FinetuneConfig
from quantenv.training.epochs import Work, training
from quantenv.training.parallel import Share, check_processes
from quantenv.training.qat.base import Quantizer
from quantenv.training.qat.network import fold_norms, reestimate_trained, trainable_network
from quantenv.training.qat.norms import check_statistics
from quantenv.training.session import Session, is_better

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
    epochs: int
    """Epochs that were trained: those of the recipe, unless losses were not finite before."""
    diverged: bool
    """Whether training ended with losses that are not finite, or worse than before it and than chance: then this is
    what was best before that, and says little of what fine-tuning can do."""
    history: tuple[Mapping[str, float], ...] = ()
    """What each epoch reported, from the one before training on, as `finetune` tells `on_epoch`."""

    @property
    def remark(self) -> str | None:
        """What has to be known of the training, as the end of a sentence; None if it improved the network."""
        where = "the network before training" if self.best_epoch == 0 else f"that of epoch {self.best_epoch}"
        if self.diverged:
            return f"training diverged (lower its learning rate), and the result is {where}"
        if self.epochs == 0:
            return "nothing was trained: 0 epochs"
        return (
            None if self.best_epoch else f"no epoch of {self.epochs} was better than before, so the result is {where}"
        )

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

    Quantizers start from calibration; batch norms are live until the end, or folded (see `trainable_network`). After
    every epoch the network is evaluated on the search split, as it would be deployed, and the best checkpoint kept, by
    accuracy, then loss. The same seed gives the same result to the bit on the same machine, thread count and number of
    processes. What is evaluated is computed from whole numbers, wherever weights and what they read are on grids: it
    depends neither on them nor on what else is evaluated with it. No global random state is touched. With several
    processes, a script calls it under ``if __name__ == "__main__":`` only.

    Args:
        task: The task.
        allocation: Bits of its layers.
        config: The recipe.
        on_epoch: Called after each epoch, and for epoch 0 before training, with ``qat/train_loss`` (not for epoch
            0), ``qat/search_accuracy``, ``qat/search_loss`` and ``qat/learning_rate``. Where a checkpoint is taken
            over, its epochs are reported first.
        checkpoint: File that is written after every epoch, and taken over if it is of the same task, allocation and
            recipe: the result is then, to the bit, that of a fine-tuning that was never interrupted. It stays.
        between_steps: Called after every step, or some ten times a second while several processes train; if it raises,
            the checkpoint is written first.

    Returns:
        The best checkpoint. Training that diverges is said by it and in the log; it ends where losses are not finite.

    Raises:
        AllocationError: If the allocation is for another network.
        QuantenvError: If a batch is larger than the training split, or is of one sample of which a batch norm sees one
            value, images are to be augmented and inputs are none, it is to be compiled and cannot be, the checkpoint is
            damaged, or there are too few GPUs for the processes or one of them fails.
    """
    config = config or FinetuneConfig()
    (allocation,) = fitting([allocation], task.layers)
    train = task.splits["train"]
    _check_samples(train, config)
    check_processes(config.processes, config.compute)
    batches = len(train) // config.batch_size
    calibration = calibrate_task(task)
    compiled = resolve(config, calibration, config.epochs * batches)
    network = _trainable(calibration, allocation, config, train, fused=compiled != NEVER)
    if config.bf16:
        keep_quantizers_in_float32(network)
    share = Share("cpu" if config.processes > 1 else config.compute)  # several processes train without this one
    session = Session(network.to(share.device), config, batches, share)
    saved = Checkpoint(checkpoint, task, allocation, config)
    if saved.load(session):
        logger.info("Going on with %s at epoch %d, step %d.", checkpoint, session.epoch, session.step)
    for epoch, metrics in enumerate(session.history):
        _report(on_epoch, epoch, metrics)

    def save() -> None:
        if not session.lost:
            saved.save(session.state())

    # Compiled with its batch norms folded, the teacher takes two thirds of the time; its outputs differ in last digits.
    teacher = calibration.graph if compiled == NETWORK else task.network
    work = Work(teacher, train, config, compiled, network, float_batch(calibration))
    with training(work, session, between_steps, save) as train_epoch:
        while session.epoch <= config.epochs and not session.lost:
            if session.epoch > 0:
                train_epoch()
            metrics = session.end_epoch(_search_evaluation(session.evaluated, task))
            save()
            _report(on_epoch, session.epoch - 1, metrics)
    return _result(task, session, calibration if config.batch_norm else None, network)


def check_recipe(task: Task, config: FinetuneConfig) -> None:
    """Checks what fine-tuning would refuse of any allocation: at once, before a long search for one.

    Raises:
        QuantenvError: As `finetune` would, but for what compiles, and for GPUs and checkpoints.
    """
    if config.epochs:
        _check_samples(task.splits["train"], config)
        eight = Allocation.make(task.layers, MAX_BITS, MAX_BITS)
        _trainable(calibrate_task(task), eight, config, task.splits["train"], fused=False)


def _check_samples(train: Split, config: FinetuneConfig) -> None:
    if config.epochs and config.batch_size > len(train):
        raise QuantenvError(
            f"Fine-tuning's batch_size is {config.batch_size}; the training split has only {len(train)} samples."
        )
    if config.epochs and config.augmented and train.inputs.dim() != 4:
        raise QuantenvError(
            f"Fine-tuning's crop and flip are for images (B, C, H, W); the inputs are {tuple(train.inputs.shape)}: "
            "leave both out."
        )


def _trainable(
    calibration: Calibration, allocation: Allocation, config: FinetuneConfig, train: Split, fused: bool
) -> fx.GraphModule:
    """Returns what is trained, which batches of the recipe's size can train."""
    live = None if config.norms is None else config.norms == LIVE
    quantizers = config.weight_quantizer, config.activation_quantizer
    network = trainable_network(calibration, allocation, *quantizers, fused=fused, live_norms=live)
    if config.batch_size == 1 and config.epochs:
        check_statistics(network, train.inputs[:1])
    return network


def _result(task: Task, session: Session, calibration: Calibration | None, network: fx.GraphModule) -> FinetuneResult:
    """Returns the best network, with re-estimated batch norms where they are asked for and better."""
    assert session.best is not None
    network.cpu().load_state_dict(session.best_state)
    best = session.best
    if fold_norms(network.eval()):
        session.best_state = copy.deepcopy(dict(network.state_dict()))
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
    diverged = session.lost or session.diverged(network(task.splits["search"].inputs[:2]).shape[1])
    result = FinetuneResult(
        task, network.eval(), best, session.best_epoch, len(session.history) - 1, diverged, tuple(session.history)
    )
    if diverged:
        logger.warning("Fine-tuning of task %r: %s.", task.name, result.remark)
    return result


def keep_quantizers_in_float32(network: nn.Module) -> None:
    """Gives a network's quantizers float32, where autocast makes everything else bfloat16: its 8 bits round levels."""
    for module in network.modules():
        if isinstance(module, Quantizer):
            module.register_forward_pre_hook(_in_float32)


def _in_float32(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(argument.float() for argument in arguments)


def _search_evaluation(network: nn.Module, task: Task) -> Evaluation:
    """Evaluates what a network would be deployed as: norms folded, so that biases are among the whole numbers."""
    deployed = copy.deepcopy(network).cpu().eval()
    fold_norms(deployed)
    return evaluate_logits(deployed, task.splits["search"])


def _report(on_epoch: OnEpoch | None, epoch: int, metrics: Mapping[str, float]) -> None:
    if on_epoch is not None:
        on_epoch(epoch, metrics)
