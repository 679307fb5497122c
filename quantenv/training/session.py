"""Everything that changes during a fine-tuning, so that a checkpoint can hold it."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quantenv.core.errors import QuantenvError
from quantenv.evaluation.base import Evaluation
from quantenv.quantization.optimizers import SGD
from quantenv.training.config import FinetuneConfig
from quantenv.training.parallel import Share
from quantenv.training.qat.base import Quantizer


class Session:
    """A fine-tuning at some step of some epoch."""

    def __init__(self, network: nn.Module, config: FinetuneConfig, batches: int, share: Share) -> None:
        """Starts at the first step.

        Args:
            network: What is trained.
            config: The recipe.
            batches: Steps of an epoch.
            share: What of every batch is this process's.
        """
        self.network, self.share = network, share
        self.batch_size, self.batches, self.rate = config.batch_size, batches, config.learning_rate
        self.clip, self.choose_from = config.clip, config.choose_from
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        self.optimizer = SGD(
            parameter_groups(network, config), config.learning_rate, config.momentum, nesterov=config.momentum > 0
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, config.epochs * batches))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch, self.step, self.total = 0, 0, 0.0
        self.order = torch.empty(0, dtype=torch.int64)
        self.history: list[dict[str, float]] = []
        self.best: Evaluation | None = None
        self.best_epoch = 0
        self.best_state: dict[str, torch.Tensor] = {}

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and kept: the network, or its moving average."""
        return self.network if self.average is None else self.average.module

    def batches_of(self, samples: int) -> Iterator[torch.Tensor]:
        """Begins or goes on with an epoch; yields the samples of each step, (B,)."""
        if self.step == 0:
            self.total = 0.0
            self.order = torch.randperm(samples, generator=self.generator)[: self.batches * self.batch_size]
        yield from self.order.split(self.batch_size)[self.step :]

    def learn(self, loss: torch.Tensor) -> None:
        """Takes one step, of a loss of this process's samples."""
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.total += self.share.mean(loss.detach()).item()
        self.step += 1

    def end_epoch(self, evaluation: Evaluation) -> dict[str, float]:
        """Keeps what is evaluated if it is the best so far to choose from; returns what is reported of the epoch.

        Raises:
            QuantenvError: If the network's outputs are not finite before training.
        """
        if not self.epoch and not math.isfinite(evaluation.loss):
            raise QuantenvError("Rounded to these bits the network puts out NaN or infinity: fine-tune one with more.")
        if math.isfinite(evaluation.loss) and (
            self.best is None or self.best_epoch < self.choose_from or is_better(evaluation, self.best)
        ):
            self.best, self.best_epoch = evaluation, self.epoch
            self.best_state = copy.deepcopy(dict(self.evaluated.state_dict()))
        metrics = {
            "qat/search_accuracy": evaluation.accuracy,
            "qat/search_loss": evaluation.loss,
            "qat/learning_rate": float(self.schedule.get_last_lr()[0]) if self.epoch else self.rate,
        }
        if self.epoch:
            metrics["qat/train_loss"] = self.total / self.batches
        self.history.append(metrics)
        self.epoch, self.step = self.epoch + 1, 0
        return metrics

    @property
    def lost(self) -> bool:
        """Whether the losses of the running epoch, or of the last one that ended, are not finite: nothing mends that.

        Such a session has no state to go on from.
        """
        last = self.history[-1] if self.history else {}
        return not all(map(math.isfinite, (self.total, *last.values())))

    def diverged(self, classes: int) -> bool:
        """Whether the last epoch's losses, in training and on the search split, are worse than before and than chance.

        Args:
            classes: Outputs of the network: to name none of them costs log(classes).
        """
        if len(self.history) < 2:
            return False
        worst = max(math.log(classes), self.history[0]["qat/search_loss"])
        last = self.history[-1]
        return not (last["qat/train_loss"] <= worst or last["qat/search_loss"] <= worst)

    def state(self) -> dict[str, Any]:
        """Returns everything, as plain values and tensors."""
        assert self.best is not None
        return {
            **self.progress(),
            "history": self.history,
            "best": (dataclasses.asdict(self.best), self.best_epoch, self.best_state),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was."""
        self.proceed(state)
        self.history = list(state["history"])
        best, self.best_epoch, self.best_state = state["best"]
        self.best = Evaluation(**best)

    def progress(self) -> dict[str, Any]:
        """Returns what steps change: everything but what evaluations found."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "position": (self.epoch, self.step, self.total),
            "order": self.order,
        }

    def proceed(self, progress: dict[str, Any]) -> None:
        """Goes to where `progress` was."""
        self.network.load_state_dict(progress["network"])
        if self.average is not None:
            self.average.load_state_dict(progress["average"])
        self.optimizer.load_state_dict(progress["optimizer"])
        self.schedule.load_state_dict(progress["schedule"])
        self.generator.set_state(progress["generator"])
        self.epoch, self.step, self.total = progress["position"]
        self.order = progress["order"]


def is_better(evaluation: Evaluation, other: Evaluation) -> bool:
    """Whether an evaluation, with a finite loss, has more correct predictions, or as many and a lower loss."""
    return math.isfinite(evaluation.loss) and (-evaluation.correct, evaluation.loss) < (-other.correct, other.loss)


def parameter_groups(network: nn.Module, config: FinetuneConfig) -> list[dict[str, object]]:
    """Returns the parameters by their learning rate and decay: weights, biases, steps, steps that are decayed."""
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
