"""Batch norms that live again while a network is fine-tuned, and are folded in the end.

Integer hardware computes a convolution and the batch norm behind it as one, so everything here starts from folded
networks. But a folded network trains badly at 2 to 4 bits: nothing keeps the scale of what its layers put out while
their weights change from one level to another. So training puts a batch norm back behind each convolution that had one,
which normalises by the statistics of every batch. Weights have a step for each channel, so what the norm multiplies a
channel by is folded into its weights and its step in the end: the levels of the rounded weights scale with it, and
the folded network computes what the live one did in eval mode, but for the last digits.
"""

from typing import Any

import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.graph.ops import BATCH_NORMS
from quantenv.quantization.formats import WeightRounding, scaled

EPSILON = 1e-5


class LiveNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, left to torch's own kernels where a network is compiled as a whole.

    What torch.compile makes of batch norms in training takes about as long as the rest of a ResNet-20's step on a CPU,
    torch's kernels a fifth of that; to the compiler each is therefore one opaque operation.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises (B, C, H, W).

        Raises:
            QuantenvError: If it is to train on one value of each channel.
        """
        if self.training and input.numel() == input.shape[1]:
            raise QuantenvError(
                "A batch norm of 1x1 maps cannot train on a batch of one sample: its statistics are of one value. Use "
                "a larger batch_size, or folded norms."
            )
        if not (self.training and torch.compiler.is_compiling()):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        output, mean, rstd = _normalise(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = input.numel() / input.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_((rstd.pow(-2) - self.eps) * (count / (count - 1)), self.momentum)
        return output


def check_statistics(network: nn.Module, inputs: torch.Tensor) -> None:
    """Checks that batch norms that are trained see more than one value of each channel.

    Args:
        network: Is run on the inputs in eval mode; its mode is restored.
        inputs: A batch as small as any that it is trained on, (B, ...).

    Raises:
        QuantenvError: If one sees a single value, of which there are no statistics; the norm is named.
    """

    def check(name: str, values: torch.Tensor) -> None:
        if values.numel() == values.shape[1]:
            raise QuantenvError(
                f"Batch norm {name!r} cannot train on a batch of {len(inputs)}: it sees one value of each channel, of "
                "which there are no statistics. Use a larger batch_size, or leave a sample out where only the last "
                "batch is as small as that."
            )

    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    hooks = [
        module.register_forward_pre_hook(lambda _module, arguments, name=name: check(name, *arguments))
        for name, module in norms
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(inputs)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()


@torch.library.custom_op("quantenv::batch_norm", mutates_args=())
def _normalise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (B, C, H, W) normalised by its own statistics; its means and reciprocal deviations, (C,)."""
    return torch.ops.aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)


@torch.library.custom_op("quantenv::batch_norm_backward", mutates_args=())
def _normalise_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients in x, weight and bias."""
    return torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )


@_normalise.register_fake
@_normalise_backward.register_fake
def _shapes(x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = next(each for each in others if each.dim() == 1)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _gradients(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    gradient = gradient.to(x.dtype).contiguous(memory_format=layout)
    return (*_normalise_backward(gradient, x, weight, mean, rstd, ctx.eps), None)


_normalise.register_autograd(_gradients, setup_context=_keep)


def unfolded(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grid: WeightRounding,
    gain: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
) -> tuple[LiveNorm, torch.Tensor, WeightRounding]:
    """Takes a folded convolution apart again into one without a bias and a batch norm.

    Args:
        weight: The folded weights, (O, ...).
        bias: The folded bias, (O,), or None.
        grid: What the folded weights are rounded to.
        gain: What folding multiplied each channel's weights by, (O,), >= 0. Without it weights have the scale that they
            were pretrained at, which is what learning rates and decays are for.
        moments: Mean and variance of the float layer's outputs, (O,) each: where the norm's bias and weight start.

    Returns:
        The norm, and the weights and their grid without the gain. The convolution with them, then the norm in eval
        mode, puts out what the folded one does. A channel of gain 0 starts as a constant.
    """
    mean, variance = (each.to(gain.dtype) for each in moments)
    alive = gain > 0
    factor = torch.where(alive, gain, 1.0)
    norm = LiveNorm(len(mean), EPSILON, dtype=gain.dtype)
    deviation = torch.where(alive, (variance + EPSILON).sqrt(), 0.0)
    start = torch.zeros_like(mean) if bias is None else bias.detach()
    with torch.no_grad():
        norm.weight.copy_(deviation)
        norm.bias.copy_(torch.where(alive, mean, start))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(torch.where(alive, (mean - start) / factor, 0.0))
        norm.running_var.copy_(torch.where(alive, (deviation / factor).square() - EPSILON, 1.0).clamp(min=0))
        return norm, weight / factor.view((-1,) + (1,) * (weight.dim() - 1)), scaled(grid, 1 / factor)


def as_affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gain and shift, (O,) each, that a batch norm is in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return gain, norm.bias.detach() - gain * norm.running_mean
