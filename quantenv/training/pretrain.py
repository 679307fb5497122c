"""Training of a float network from scratch that can be stopped after any epoch and continued to the same weights.

Images stay in memory; random crops and flips are drawn for a whole batch at once, so that two cores suffice.
"""

import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.quantization.optimizers import SGD
from quantenv.tasks.base import Split
from quantenv.training.augmentation import augment
from quantenv.training.parallel import Processes, ProcessShare, Share, check_processes
from quantenv.training.pretrain_config import PretrainConfig
from quantenv.training.shared_norm import share_batch_norms

FORMAT = "quantenv-pretraining-1"
REMEDY = "Remove it to begin anew."


class Pretraining:
    """A network in training, one epoch at a time. No global random state is touched."""

    def __init__(self, network: nn.Module, train: Split, config: PretrainConfig, share: Share | None = None) -> None:
        """Begins before the first epoch.

        Args:
            network: Trained in place, and moved to where it is trained.
            train: Training images, inputs of shape (N, C, H, W).
            config: The recipe.
            share: What of every batch is trained on here, by default all; several processes train without this one.

        Raises:
            QuantenvError: If a batch is larger than the training split, or what is to train on is not here.
        """
        if config.batch_size > len(train):
            raise QuantenvError(
                f"--batch_size is {config.batch_size}; the training split has only {len(train)} images."
            )
        if share is None:
            check_processes(config.processes, config.compute)
        self._share = share or Share("cpu" if config.processes > 1 else config.compute)
        self._device = self._share.device
        self.network = network.to(self._device)
        """The network, with the weights of the last epoch."""
        self._train, self._config = train, config
        decayed = [p for p in network.parameters() if p.dim() > 1]
        rest = [p for p in network.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest}]
        momentum = config.momentum
        self._optimizer = SGD(groups, config.learning_rate, momentum, nesterov=momentum > 0)
        self._forward = self._share.prepare(self.network)
        self.epoch = 0
        """Epochs done."""

    def epochs(self, on_batch: Callable[[], object] = lambda: None) -> Generator[dict[str, float], None, None]:
        """Trains to the last epoch, here or in several processes, which end when the iterator is closed.

        Args:
            on_batch: Called after each step, or some ten times a second while several processes train; what it raises
                leaves the epoch unfinished.

        Yields:
            What `run_epoch` returns of each epoch. Other processes begin the next one meanwhile.

        Raises:
            QuantenvError: If the loss is not finite, or a process fails.
        """
        config = self._config
        if config.processes == 1:
            while self.epoch < config.epochs:
                yield self.run_epoch(on_batch)
        elif self.epoch < config.epochs:
            work = self.network, self._train, config, self.state()
            with Processes(_train_share, work, config.processes, config.compute) as processes:
                while self.epoch < config.epochs:
                    state, metrics = processes.next(on_batch)
                    self.load(state)
                    self.network.eval()
                    yield metrics

    def run_epoch(self, on_batch: Callable[[], object] = lambda: None) -> dict[str, float]:
        """Trains for one epoch.

        Args:
            on_batch: Called after each step; what it raises leaves the epoch unfinished.

        Returns:
            ``pretrain/train_loss``, the mean of the epoch, and ``pretrain/learning_rate``, of its last step.

        Raises:
            QuantenvError: If the loss is not finite.
        """
        config, count = self._config, len(self._train) // self._config.batch_size
        seed = config.seed * 1_000_003 + self.epoch  # an epoch's draws depend on nothing that came before
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._train), generator=generator)[: count * config.batch_size]
        total = torch.zeros((), device=self._device)
        self.network.train()
        with torch.random.fork_rng(devices=[] if self._device.type == "cpu" else [self._device]):
            torch.manual_seed(seed + 1_000_000_007 * self._share.rank)  # what dropout draws from
            for step, indices in enumerate(order.split(config.batch_size), start=self.epoch * count):
                rate = cosine(config.learning_rate, step, config.epochs * count)
                total += self._step(indices, rate, generator)
                on_batch()
        if not math.isfinite(loss := float(self._share.mean(total)) / count):
            raise QuantenvError(
                f"Pretraining diverged in epoch {self.epoch + 1}: the loss is not finite. Lower --learning_rate "
                f"({config.learning_rate})."
            )
        self.epoch += 1
        self.network.eval()
        return {"pretrain/train_loss": loss, "pretrain/learning_rate": rate}

    def _step(self, indices: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
        """Trains on this process's share of the images of these indices, and returns its loss."""
        config, rows = self._config, self._share.rows(len(indices))
        mine = indices[rows]
        images = self._train.inputs[mine]
        images = augment(images, config.crop_padding, bool(config.flip), generator, rows, len(indices))
        images, labels = images.to(self._device), self._train.labels[mine].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=config.bf16):
            logits = self._forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Returns all that continuing needs, as plain values and tensors: epochs done, weights, momenta."""
        optimizer, network = self._optimizer.state_dict(), self.network.state_dict()
        return {"epoch": self.epoch, "network": dict(network), "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """Continues where another training with the same arguments was when it gave its `state`."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]

    def save(self, path: Path) -> None:
        """Writes the `state` to a file, atomically."""
        state = self.state()
        momenta = {str(index): kept["momentum_buffer"] for index, kept in state["optimizer"]["state"].items()}
        tensors = {f"network/{name}": value for name, value in state["network"].items()}
        tensors |= {f"momentum/{index}": value for index, value in momenta.items()}
        write_tensors(path, FORMAT, {"epoch": self.epoch}, tensors)

    def restore(self, path: Path) -> None:
        """Continues where the training was that wrote a file by `save`.

        Raises:
            QuantenvError: If the file is missing or damaged, or of another training; nothing changes.
        """
        numbers, tensors = read_tensors(path, FORMAT, "a checkpoint of a training", REMEDY)
        state = self.state()
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        momenta = {f"momentum/{index}": parameter for index, parameter in enumerate(parameters)}
        here = {f"network/{name}": value for name, value in state["network"].items()}
        here |= {name: value for name, value in momenta.items() if name in tensors}
        wrong = [
            name
            for name in sorted({*here, *tensors})
            if name not in here or name not in tensors or not _alike(here[name], tensors[name])
        ]
        epoch = numbers.get("epoch")
        if wrong or set(numbers) != {"epoch"} or type(epoch) is not int or not 0 <= epoch <= self._config.epochs:
            what = f"its {wrong[0][:80]!r} does not fit" if wrong else f"it is at epoch {str(epoch)[:20]}"
            raise QuantenvError(f"Cannot continue from {path}: {what}. {REMEDY}")
        kept = {int(name.partition("/")[2]): {"momentum_buffer": tensors[name]} for name in momenta if name in tensors}
        self.load(
            {
                "epoch": epoch,
                "network": {name: tensors[f"network/{name}"] for name in state["network"]},
                "optimizer": {**state["optimizer"], "state": kept},
            }
        )


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _train_share(share: ProcessShare, network: nn.Module, train: Split, config: PretrainConfig, state: Any) -> None:
    """Trains to the last epoch in one of several processes."""
    training = Pretraining(share_batch_norms(network, share), train, config, share)
    training.load(state)
    while training.epoch < config.epochs:
        metrics = training.run_epoch(share.check)
        share.report((training.state(), metrics))


def cosine(peak: float, step: int, steps: int) -> float:
    """Returns the learning rate of a step: half a cosine from `peak` at step 0 to 0 after the last one.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))
