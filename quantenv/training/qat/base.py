"""What every trained quantizer is, and two of them: straight-through rounding to fixed grids, and LSQ."""

import math
from typing import ClassVar

import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.quantization.formats import (
    Grid,
    Rounding,
)


class Quantizer(nn.Module):
    """Rounds one tensor to at most ``2**bits`` values, differentiably: what every trained quantizer is.

    A quantizer starts from what calibration found and is used in place of a constant rounding: `forward` maps a
    tensor to rounded values of the same shape, and lets gradients through to the tensor and to what it learns.
    """

    decayed: ClassVar[bool] = False
    """Whether what it learns is decayed as weights are."""

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer.

        Args:
            grid: Where learning starts.
            elements: Weights, or features of an activation per sample, that share one step.
        """
        super().__init__()
        self.bits = grid.bits
        self.elements = elements

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x`, differentiably."""
        raise NotImplementedError(f"{type(self).__name__} does not round.")

    def levels(self) -> torch.Tensor:
        """Returns the values that can come out, ascending: shape (C, n), C channels or 1, n at most ``2**bits``."""
        raise NotImplementedError(f"{type(self).__name__} does not list its values.")

    def unit(self) -> torch.Tensor | None:
        """Returns what its values are whole multiples of, of the shape of its steps, or None; without a gradient."""
        return None

    def steps(self) -> list[nn.Parameter]:
        """Returns what is learned at the rate of steps; other parameters learn at that of weights."""
        return list(self.parameters(recurse=False))

    def adopt(self, weight: torch.Tensor) -> torch.Tensor:
        """Takes over a pretrained weight and returns what to train in its place, a new tensor of its shape."""
        return weight.detach().clone()

    def extra_repr(self) -> str:
        """Shows the bits."""
        return f"bits={self.bits}"


class GridQuantizer(Quantizer):
    """A quantizer whose values are those of a grid, with a step that may be learned."""

    scale: torch.Tensor

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`.

        Raises:
            QuantenvError: If it is to start from a codebook.
        """
        super().__init__(grid, elements)
        if not isinstance(grid, Grid):
            raise QuantenvError(f"{type(self).__name__} starts from a grid, not from a codebook; use 'k-means'.")
        self.low, self.high, self.sign = grid.low, grid.high, grid.sign

    def levels(self) -> torch.Tensor:
        """Returns the grid's values, (C, n)."""
        numbers = torch.tensor([-1.0, 1.0]) if self.sign else torch.arange(self.low, self.high + 1)
        return self.scale.detach().abs().reshape(-1, 1) * numbers

    def unit(self) -> torch.Tensor | None:
        """Returns the step."""
        return self.scale.detach().abs()

    def extra_repr(self) -> str:
        """Shows the grid."""
        return f"bits={self.bits}, low={self.low}, high={self.high}"


class LinearQuantizer(GridQuantizer):
    """A constant grid: only the data learn, straight-through inside the range (Jacob et al. 2018, section 3).

    For activations this is DoReFa's quantizer, too (Zhou et al. 2016, eq. 5 and 11), with the calibrated range in
    place of [0, 1], which a pretrained network does not keep to.
    """

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`."""
        super().__init__(grid, elements)
        self.register_buffer("scale", grid.scale.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` to the grid, differentiably in `x`."""
        if self.sign:
            passed = torch.maximum(torch.minimum(x, self.scale), -self.scale)
            return (torch.where(x >= 0, self.scale, -self.scale) - passed).detach() + passed
        clipped = (x / self.scale).clamp(self.low, self.high)
        return straight_through(clipped) * self.scale


class LSQQuantizer(GridQuantizer):
    """Learned step size quantization (Esser et al. 2020, "LSQ").

    The gradient of the step is eq. 3 (``round(v) - v`` inside the range, the bound outside, with v = x / scale),
    scaled by ``1 / sqrt(N * high)`` (section 2.2); the gradient of the data is straight-through inside the range
    (eq. 5). For sign grids the derivative of ``scale * sign(x)`` is used and data gradients pass where |x| <= scale.
    The step is kept positive by its absolute value.
    """

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer.

        Args:
            grid: Initial grid; its scale is where learning starts.
            elements: N of section 2.2: weights, or features of an activation per sample, sharing one step.
        """
        super().__init__(grid, elements)
        self.scale = nn.Parameter(grid.scale.clone())
        self.gradient_scale = 1.0 / math.sqrt(elements * max(1, self.high))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` to the grid, differentiably."""
        step = scaled_gradient(self.scale.abs(), self.gradient_scale)
        if self.sign:
            scale = self.scale.abs()
            passed = torch.maximum(torch.minimum(x, scale.detach()), -scale.detach())
            hard = torch.where(x >= 0, 1.0, -1.0)
            return hard * step + (passed - passed.detach())
        clipped = (x / step).clamp(self.low, self.high)
        return straight_through(clipped) * step


def straight_through(v: torch.Tensor) -> torch.Tensor:
    """Returns ``round(v)`` with the gradient of v (Bengio et al. 2013)."""
    return (v.round() - v).detach() + v


def scaled_gradient(value: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """Returns `value` with its gradient multiplied by `factor`, a number."""
    return (value - value * factor).detach() + value * factor
