"""The epochs of a fine-tuning, trained by this process or by several."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.tasks import Split
from quantenv.training.augmentation import augment
from quantenv.training.config import NETWORK, FinetuneConfig
from quantenv.training.parallel import Processes, ProcessShare, Share, Stopped
from quantenv.training.qat.compiling import compiled
from quantenv.training.session import Session
from quantenv.training.shared_norm import share_batch_norms


@dataclass(frozen=True)
class Work:
    """What is fine-tuned, and how."""

    teacher: nn.Module
    """The float network, in eval mode."""
    train: Split
    """The training split."""
    config: FinetuneConfig
    """The recipe."""
    compiled: str
    """What is compiled: never, quantizers or network."""
    network: nn.Module
    """What is trained."""
    teacher_batch: int
    """Samples that the float network is run on at once, where its outputs on the whole split are wanted."""


@contextmanager
def training(
    work: Work, session: Session, between_steps: Callable[[], object] | None, save: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Yields what takes a session to the end of its epoch.

    Several processes are started for its first epoch, begin the next one while this process evaluates, and have ended
    when this is left.

    Args:
        work: What is trained.
        session: Where it is; of `work`'s network.
        between_steps: May raise to end the training.
        save: Called then, with the session at the last step.
    """
    check = between_steps or (lambda: None)
    config = work.config
    if config.processes == 1:
        epoch = _epoch(work, session, session.share)

        def check_or_save() -> None:
            try:
                check()
            except BaseException:
                save()
                raise

        yield lambda: epoch(check_or_save)
        return

    def keep(progress: dict[str, Any]) -> None:
        session.proceed(progress)
        save()

    with ExitStack() as stack:
        started: list[Processes] = []

        def epoch_of_processes() -> None:
            if not started:
                processes = Processes(_train_share, (work, session.progress()), config.processes, config.compute)
                started.append(stack.enter_context(processes))
            session.proceed(started[0].next(check, keep))

        yield epoch_of_processes


def _train_share(share: ProcessShare, work: Work, progress: dict[str, Any]) -> None:
    """Trains to the last epoch, in one of several processes; reports after each, and when asked to stop."""
    batches = len(work.train) // work.config.batch_size
    network = share_batch_norms(work.network.to(share.device), share)
    session = Session(network, work.config, batches, share)
    session.proceed(progress)
    epoch = _epoch(dataclasses.replace(work, network=network), session, share)
    try:
        while session.epoch <= work.config.epochs:
            epoch(share.check)
            share.report(session.progress())
            session.epoch, session.step = session.epoch + 1, 0
    except Stopped:
        share.report(session.progress())


def _epoch(work: Work, session: Session, share: Share) -> Callable[[Callable[[], None]], None]:
    """Returns what trains this process's share until an epoch's end, with a check after every step."""
    loss_of = _Loss(work, session.generator, share)
    whole = work.compiled == NETWORK
    network = share.prepare(compiled(work.network) if whole else work.network)  # type: ignore[arg-type]

    def epoch(check: Callable[[], None]) -> None:
        work.network.train()
        for indices in session.batches_of(len(work.train)):
            session.learn(loss_of(network, indices))
            check()

    return epoch


class _Loss:
    """The loss of this process's share of a batch of the training split."""

    def __init__(self, work: Work, generator: torch.Generator, share: Share) -> None:
        self.work, self.generator, self.share = work, generator, share
        self.train, self.config = work.train, work.config

    def __call__(self, network: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Returns the loss, 0-d, of the share of the samples at `indices` (B,)."""
        config, rows = self.config, self.share.rows(len(indices))
        mine = indices[rows]
        inputs = self.train.inputs[mine]
        if config.augmented:
            inputs = augment(inputs, config.crop, config.flip, self.generator, rows, len(indices))
        inputs, labels = inputs.to(self.share.device), self.train.labels[mine].to(self.share.device)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.bf16):
            logits = network(inputs).float()  # (B / processes, classes)
        loss = (1 - config.distillation) * F.cross_entropy(logits, labels)
        if config.distillation:
            soft = self._teacher(inputs, mine).softmax(1)
            loss = loss + config.distillation * F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return loss

    def _teacher(self, inputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Returns the float network's logits of samples, (B, classes)."""
        work, device = self.work, self.share.device
        if not self.config.augmented:  # the same images in every epoch: so the outputs
            whole = work.compiled == NETWORK
            return _float_outputs(work.teacher, self.train.inputs, work.teacher_batch, whole, device)[indices]
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.bf16):
            logits: torch.Tensor = self._network(inputs)
        return logits.float()

    @functools.cached_property
    def _network(self) -> nn.Module:
        return _teacher_on(self.work.teacher, self.work.compiled == NETWORK, self.share.device)


@functools.lru_cache(maxsize=1)
def _float_outputs(
    teacher: nn.Module, inputs: torch.Tensor, batch: int, whole: bool, device: torch.device
) -> torch.Tensor:
    """Returns the float network's logits of the training split, (N, classes): once for all its fine-tunings.

    They are made when the first step is taken: a recipe of 0 epochs, or one that is resumed at its end, needs none.
    """
    network = _teacher_on(teacher, whole, device)
    with torch.inference_mode():
        return torch.cat([network(part.to(device)) for part in inputs.split(batch)]).clone()


def _teacher_on(teacher: nn.Module, whole: bool, device: torch.device) -> nn.Module:
    network = teacher if device.type == "cpu" else copy.deepcopy(teacher).to(device)
    return compiled(network) if whole else network  # type: ignore[return-value]
