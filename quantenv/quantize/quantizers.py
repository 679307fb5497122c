"""How one tensor is rounded: grids, linear uniform rounding (`quantize`) and LSQ, which learns its step.

A grid is a step `scale` and whole-number bounds `low..high`; the quantized value is
``scale * clamp(round(x / scale), low, high)``. A zero-point z of an affine quantizer with b bits is the same thing
with ``low = -z, high = 2**b - 1 - z`` (Jacob et al. 2018, eq. 1), so real zero is always representable exactly.
One bit on data of both signs is ``scale * sign(x)`` (Rastegari et al. 2016, XNOR-Net), never round-and-clamp,
which would have three values.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from quantenv.errors import QuantenvError


@dataclass(frozen=True)
class Grid:
    """The values a quantized tensor may take."""

    bits: int
    """Bit-width, 1-8."""
    scale: torch.Tensor
    """Positive step (half the distance between the two values of a sign grid); 0-d, or broadcastable per channel."""
    low: int
    """Lowest whole number of the grid."""
    high: int
    """Highest whole number of the grid."""

    @property
    def sign(self) -> bool:
        """Whether the grid is ``{-scale, +scale}``."""
        return self.bits == 1 and self.low < 0


def weight_bounds(bits: int) -> tuple[int, int]:
    """Returns the symmetric bounds of weights: ``-(2**(bits-1)-1) .. 2**(bits-1)-1``, and -1..1 for one bit.

    Args:
        bits: 1-8.

    Returns:
        Lowest and highest whole number. The most negative code is unused, so that integer kernels can rely on
        a symmetric range (Jacob et al. 2018, section 2.1 footnote).

    Raises:
        QuantenvError: If bits leave 1-8.
    """
    _check_bits(bits)
    high = max(1, 2 ** (bits - 1) - 1)
    return -high, high


def activation_bounds(bits: int, zero_point: int = 0) -> tuple[int, int]:
    """Returns the bounds of affine activations with ``2**bits`` values of which `zero_point` are negative.

    Args:
        bits: 1-8.
        zero_point: 0 for non-negative data. One-bit data of both signs are sign data: any value above 0 means that.

    Returns:
        Lowest and highest whole number.

    Raises:
        QuantenvError: If bits leave 1-8.
    """
    _check_bits(bits)
    if bits == 1 and zero_point > 0:
        return -1, 1
    return -zero_point, 2**bits - 1 - zero_point


def quantize(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Rounds to the nearest value of the grid.

    Args:
        x: Any float tensor that `grid.scale` broadcasts to.
        grid: The grid.

    Returns:
        A new tensor of the same shape and memory format, holding grid values.
    """
    if grid.sign:
        return torch.where(x >= 0, grid.scale, -grid.scale)
    # Composed on purpose: torch.fake_quantize_* doubles the time of a forward pass on CPU. Division, not
    # multiplication by the reciprocal, is what QuantizeLinear does: ties then fall the same way.
    return x.div(grid.scale).round_().clamp_(grid.low, grid.high).mul_(grid.scale)


class Quantizer(nn.Module):
    """Rounds one tensor to a grid, differentiably: what every trained quantizer is."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.bits, self.low, self.high, self.sign = grid.bits, grid.low, grid.high, grid.sign

    def extra_repr(self) -> str:
        """Shows the grid."""
        return f"bits={self.bits}, low={self.low}, high={self.high}"


class LSQQuantizer(Quantizer):
    """Learned step size quantization (Esser et al. 2020, "LSQ").

    The gradient of the step is eq. 3 (``round(v) - v`` inside the range, the bound outside, with v = x / scale),
    scaled by ``1 / sqrt(N * high)`` (section 2.2); the gradient of the data is straight-through inside the range
    (eq. 5). For sign grids the derivative of ``scale * sign(x)`` is used and data gradients pass where |x| <= scale.
    The step is kept positive by its absolute value.
    """

    def __init__(self, grid: Grid, elements: int) -> None:
        """Makes the quantizer.

        Args:
            grid: Initial grid; its scale is where learning starts.
            elements: N of section 2.2: weights, or features of an activation per sample, sharing one step.
        """
        super().__init__(grid)
        self.scale = nn.Parameter(grid.scale.clone())
        self.gradient_scale = 1.0 / math.sqrt(elements * max(1, self.high))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` to the grid, differentiably."""
        scale = self.scale.abs()
        # The value of scale, the gradient of scale * gradient_scale.
        step = (scale - scale * self.gradient_scale).detach() + scale * self.gradient_scale
        if self.sign:
            passed = torch.maximum(torch.minimum(x, scale.detach()), -scale.detach())
            hard = torch.where(x >= 0, 1.0, -1.0)
            return hard * step + (passed - passed.detach())
        clipped = (x / step).clamp(self.low, self.high)
        return ((clipped.round() - clipped).detach() + clipped) * step


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise QuantenvError(f"Cannot quantize to {bits} bits; bit-widths are whole numbers from 1 to 8.")
