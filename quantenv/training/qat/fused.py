"""LSQ in one pass forward and one backward: what makes a training step cost about what a float one costs.

Composed of torch's operators, LSQ reads and writes every activation some ten times, which on a processor costs more
than the convolutions. Here it is two kernels that torch.compile makes, for any shape and any bits: the bounds of a grid
are tensors, so that another allocation, or another network, compiles nothing anew. A network of such quantizers can
also be compiled as a whole, which takes far longer and is faster still.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from quantenv.quantization.formats import Rounding
from quantenv.training.qat.base import LSQQuantizer, scaled_gradient, straight_through
from quantenv.training.qat.compiling import compiled

logger = logging.getLogger(__name__)

#: A kernel of rows (C, n), of which each has a step, (C, 1).
Kernel = Callable[..., Any]


class FusedLSQQuantizer(LSQQuantizer):
    """`LSQQuantizer`, but compiled; equal to it but for the last digit. Sign grids (one bit) are not compiled."""

    bounds: torch.Tensor
    factor: torch.Tensor

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `LSQQuantizer`."""
        super().__init__(grid, elements)
        bounds = torch.tensor([self.low, self.high], dtype=torch.float32)
        self.register_buffer("bounds", bounds, persistent=False)
        self.register_buffer("factor", torch.tensor(self.gradient_scale), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` to the grid, differentiably."""
        if self.sign:
            return super().forward(x)
        if torch.compiler.is_compiling():  # part of a network that is compiled as a whole, which fuses it by itself
            step = scaled_gradient(self.scale.abs(), self.factor)
            return straight_through((x / step).clamp(self.bounds[0], self.bounds[1])) * step
        rounded: torch.Tensor = _Fused.apply(x, self.scale, self.bounds, self.gradient_scale)
        return rounded


def rounded_rows(x: torch.Tensor, step: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Rounds rows to their grids: LSQ's eq. 1 and 2.

    Args:
        x: Rows, (C, n).
        step: Positive steps, (C, 1).
        bounds: Lowest and highest whole number, (2,).

    Returns:
        Values of the grids, (C, n).
    """
    return (x / step).clamp(bounds[0], bounds[1]).round() * step


def row_gradients(
    gradient: torch.Tensor, x: torch.Tensor, step: torch.Tensor, bounds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `rounded_rows` in its rows, (C, n), and steps, (C, 1): LSQ's eq. 5 and 3."""
    v = x / step
    clipped = v.clamp(bounds[0], bounds[1])
    inside = (v >= bounds[0]) & (v <= bounds[1])
    of_step = torch.where(inside, clipped.round() - clipped, clipped)
    return torch.where(inside, gradient, 0.0), (gradient * of_step).sum(1, keepdim=True)


@functools.cache
def kernels() -> tuple[Kernel, Kernel]:
    """Returns the compiled `rounded_rows` and `row_gradients`; they are compiled when first called."""
    return compiled(rounded_rows, dynamic=True), compiled(row_gradients, dynamic=True)


@functools.cache
def compiler_obstacle() -> str | None:
    """Compiles the kernels and returns why they cannot be compiled here, or None if they compute what is written."""
    forward, backward = kernels()
    bounds = torch.tensor([-1.0, 1.0])
    try:
        with _one_state(bounds.device):
            for rows, columns in ((1, 8192), (8, 68)):  # activations have one step, weights one for each channel
                x, step = torch.linspace(-2, 2, rows * columns).view(rows, columns), torch.full((rows, 1), 0.75)
                upstream = x.flip(1)
                found = forward(x, step, bounds), *backward(upstream, x, step, bounds)
                written = rounded_rows(x, step, bounds), *row_gradients(upstream, x, step, bounds)
                if not all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(found, written, strict=True)):
                    return "torch.compile makes kernels here that compute something else than what is written"
    except Exception as error:  # whatever a missing or broken compiler makes torch raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.debug("torch.compile failed.", exc_info=True)
        return f"torch.compile fails here ({reason})"
    return None


class _Fused(torch.autograd.Function):
    """The kernels as a function of a whole tensor and its steps."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, bounds: torch.Tensor, gradient_scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale, bounds)
        ctx.gradient_scale = gradient_scale
        with _one_state(x.device):
            step = scale.detach().abs().reshape(-1)
            return _restored(kernels()[0](_rows(x, len(step)), _rows(step, len(step)), bounds), x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, bounds = ctx.saved_tensors
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        gradient = gradient.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        with _one_state(x.device):
            step = scale.detach().abs().reshape(-1)
            rows, step = _rows(x, len(step)), _rows(step, len(step))
            of_x, of_step = kernels()[1](_rows(gradient, len(step)), rows, step, bounds)
            of_scale = of_step.view(scale.shape) * ctx.gradient_scale * scale.sign()
            return _restored(of_x, x), of_scale, None, None


@contextmanager
def _one_state(device: torch.device) -> Iterator[None]:
    """Turns gradients, inference mode and automatic casts off: a kernel is compiled anew for each state of them."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _rows(x: torch.Tensor, count: int) -> torch.Tensor:
    """Returns a tensor as (count, n), in the order of its memory, without copying it if it is dense.

    It is no view of `x` but a tensor of its own on the same memory: kernels are compiled anew for what a view's base
    looks like, for tensors of inference mode, and for those that need gradients.
    """
    if not (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        x = x.contiguous()
    size = (count, x.numel() // count)
    rows = torch.empty(0, dtype=x.dtype, device=x.device)
    return rows.set_(x.untyped_storage(), x.storage_offset(), size, (size[1], 1))


def _restored(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gives rows the shape of the tensor that they were made of."""
    if x.is_contiguous() or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return rows.view(x.shape)
    return rows.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
