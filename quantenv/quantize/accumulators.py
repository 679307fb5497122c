"""The whole numbers that a layer's integer arithmetic sums up, exact, on whatever computes them."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F

from quantenv.quantize.quantizers import Codebook, Grid, WeightRounding
from quantenv.quantize.switched import SwitchedLayer, WeightBits, keep

#: Float32 holds every whole number up to here, so sums of whole numbers that stay within are exact in any order.
EXACT = 1 << 24


class Accumulators(Protocol):
    """Computes a layer's accumulators: sums of products of its input's whole numbers and its weights'."""

    unit: torch.Tensor
    """What an accumulator of 1 stands for, float64 (O,)."""

    def select(self, weight_bits: WeightBits, activation_bits: int) -> None:
        """Chooses the weights and the input's grid."""

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Maps codes of the input, uint8 (B, C, H, W) or (B, ..., F), to whole numbers up to `EXACT` in float32."""


class FloatAccumulators:
    """Accumulators in float arithmetic, exact in single precision where they fit, else in double.

    Where they may leave `EXACT`, they are rounded to the power of two that keeps them within. The weights of a codebook
    are no whole numbers: their sums are always rounded to such a power, as small as it may be.
    """

    def __init__(self, layer: SwitchedLayer) -> None:
        """Makes them for a layer."""
        self._layer = layer
        self._weights: dict[WeightBits, tuple[torch.Tensor, float]] = {}

    def select(self, weight_bits: WeightBits, activation_bits: int) -> None:
        """Chooses the weights and the input's grid."""
        layer, rounding = self._layer, self._layer.rounding(weight_bits)
        self._grid = layer.source.grids[activation_bits]
        if weight_bits not in self._weights:
            weight = whole_weights(layer, weight_bits)
            keep(self._weights, weight_bits, (weight, size_of(weight)), len(layer.grids) + layer.mixtures)
        weight, size = self._weights[weight_bits]
        codebook = isinstance(rounding, Codebook)
        self._exponent = spare_exponent(size, self._grid, codebook)
        self._weight = weight.double() if self._exponent or codebook else weight
        self.unit = units(rounding, self._grid, self._exponent)

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Computes the accumulators."""
        numbers = codes.to(self._weight.dtype).add_(self._grid.low)
        if self._layer.convolution is None:
            sums = F.linear(numbers, self._weight)
        else:
            stride, padding, dilation, groups = self._layer.convolution
            sums = F.conv2d(numbers, self._weight, None, stride, padding, dilation, groups)
        return sums if sums.dtype == torch.float32 else rounded(sums, self._exponent)


def whole_weights(layer: SwitchedLayer, weight_bits: WeightBits) -> torch.Tensor:
    """Returns weights divided by their channel's scale, float32 (O, ...): whole numbers, or centroids of a codebook."""
    scale, (weight, _) = layer.rounding(weight_bits).scale, layer.rounded(weight_bits)
    divided = weight / torch.where(scale > 0, scale, 1.0)
    return divided if isinstance(layer.rounding(weight_bits), Codebook) else divided.round()


def size_of(weight: torch.Tensor) -> float:
    """Returns the largest sum of a channel's absolute weights, (O, ...): what bounds accumulators of inputs up to 1."""
    return float(weight.double().abs().flatten(1).sum(1).max())


def spare_exponent(size: float, grid: Grid, codebook: bool = False) -> int:
    """Returns the exponent of the power of two that accumulators are rounded to, so that they stay within `EXACT`.

    Args:
        size: The weights' `size_of`.
        grid: Of the input.
        codebook: Whether weights are centroids of a codebook. Accumulators of whole numbers, exponent 0, are not
            rounded where not even a partial sum of them can leave it.
    """
    excess = math.frexp(size * max(abs(grid.low), abs(grid.high)) / EXACT)[1]
    return excess if codebook else max(0, excess)


def units(rounding: WeightRounding, grid: Grid, exponent: int) -> torch.Tensor:
    """Returns what an accumulator of 1 stands for by channel, float64 (O,)."""
    return rounding.scale.double().flatten() * grid.scale.double() * 2.0**exponent


def rounded(sums: torch.Tensor, exponent: int) -> torch.Tensor:
    """Rounds exact sums, in any precision, to a power of two and returns them divided by it, float32."""
    return sums.double().mul_(2.0**-exponent).round_().float()
