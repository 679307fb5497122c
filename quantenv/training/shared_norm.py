"""Batch norms whose statistics are those of all processes' samples."""

from typing import Any

import torch
from torch import nn

from quantenv.training.parallel import Share


def share_batch_norms(network: nn.Module, share: Share) -> nn.Module:
    """Lets a network's batch norms compute, in training, the statistics of the whole batch and not of a share of it.

    Args:
        network: Changed in place; parameters, buffers and their names stay.
        share: What of the batch is this process's. On GPUs torch's own `SyncBatchNorm` is used, which knows no CPU.

    Returns:
        The network.
    """
    if share.device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return synchronised
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm
        elif isinstance(module, nn.BatchNorm1d):
            module.__class__ = SharedBatchNorm1d
    return network


class _Shared(nn.modules.batchnorm._BatchNorm):
    """A batch norm over the equally large shares of all processes of torch's default group, with running statistics."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises (B / processes, C, ...)."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        x = input.to(self.running_mean.dtype)
        others = (0, *range(2, x.dim()))
        shape = (-1, *(1 for _ in range(x.dim() - 2)))  # of what belongs to channels
        processes = torch.distributed.get_world_size()
        mean = _sum(x.mean(others)) / processes  # (C,)
        centred = x - mean.view(shape)
        variance = _sum(centred.square().mean(others)) / processes
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
            momentum = 1 / int(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
            count = processes * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)


class SharedBatchNorm(_Shared, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes' shares of a batch."""


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes' shares of a batch."""


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def _sum(value: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Sum.apply(value)
    return total
