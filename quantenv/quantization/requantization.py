"""The whole numbers that integer hardware computes a layer with: its bias, and what takes its sums to the next grid.

A layer sums products of whole numbers, adds a whole number (its bias on the grid of these sums, Jacob et al. 2018,
section 2.4) and multiplies by one number for each output channel on the way to the next tensor's grid (HAWQ-V3, Yao et
al. 2021, eq. 3-5). That multiplier has 24 bits, b / 2**c. The product is rounded to 24 bits, then to a whole number,
both times to the nearest, ties to even. That is what onnxruntime's QLinearConv does with a multiplier of single
precision, whose product with a whole number IEEE 754 rounds correctly; so no CPU can differ in a bit.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from quantenv.quantization.formats import Grid

#: Float32 holds every whole number up to here, so sums of whole numbers that stay within are exact in any order.
EXACT = 1 << 24
#: Biases are int32, as integer hardware holds them.
LARGEST_BIAS = (1 << 31) - 1
#: What a silent channel's bias is a multiple of, relative to its own size: it has no weights whose grid it could be on.
SILENT_UNIT = 2.0**-20
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ChannelScales:
    """What a layer's accumulators stand for."""

    weight_scale: np.ndarray
    """Scale of the weights by output channel, float32 (O,)."""
    unit: np.ndarray
    """What an accumulator of 1 stands for, float64 (O,)."""
    bias: np.ndarray
    """The bias in such units, float64 (O,): whole numbers of at most 31 bits (but for codebooks)."""

    @property
    def bias_value(self) -> np.ndarray:
        """The bias that the whole numbers stand for, float64 (O,)."""
        value: np.ndarray = self.bias * self.unit
        return value


def channel_scales(
    weight_scale: np.ndarray, input_scale: np.ndarray, bias: np.ndarray, silent: np.ndarray, whole: bool = True
) -> ChannelScales:
    """Puts a layer's bias on the grid of its accumulators.

    Args:
        weight_scale: Scale of the weights by output channel, float32 (O,).
        input_scale: Scale of the input, float32 ().
        bias: The bias, float64 (O,).
        silent: Channels whose weights are all zero, bool (O,): theirs is any scale, and one is chosen that holds the
            bias.
        whole: Whether accumulators are whole numbers; those of codebooks are not, and neither is their bias.

    Returns:
        The scales and the bias.
    """
    if silent.any():
        own = np.array([SILENT_UNIT * _power_of_two(each) for each in bias]) / float(input_scale)
        weight_scale = np.where(silent, np.maximum(own, _TINY), weight_scale).astype(np.float32)
    unit = weight_scale.astype(np.float64) * float(input_scale)
    number = bias / unit
    if whole:
        number = np.clip(np.rint(number), -LARGEST_BIAS, LARGEST_BIAS)
    return ChannelScales(weight_scale, unit, number)


def _power_of_two(value: float) -> float:
    return 2.0 ** math.frexp(value)[1] if value and math.isfinite(value) else 1.0


def multipliers(weight_scale: np.ndarray, input_scale: np.ndarray, output_scale: np.ndarray) -> np.ndarray:
    """Returns what accumulators are multiplied by on their way to another grid, float32 (O,).

    It is ``weight_scale * input_scale / output_scale``, rounded after each operation as onnxruntime does; but where the
    product would leave single precision, only once.
    """
    product = weight_scale * input_scale
    wide = weight_scale.astype(np.float64) * float(input_scale) / float(output_scale)
    narrow: np.ndarray = np.where((product > _TINY) & np.isfinite(product), product / output_scale, wide)
    return narrow.astype(np.float32)


def ratio(scale: torch.Tensor, output_scale: torch.Tensor, count: int = 1) -> float:
    """Returns the multiplier, of single precision, that takes sums of `count` values to their mean on another grid."""
    return float(np.float32(float(scale) / (float(output_scale) * count)))


def dyadic(scales: list[float], output_scale: float, largest: list[int]) -> list[float]:
    """Returns multipliers b / 2**c of two terms, one c for both, whose products and their sum single precision holds.

    Their bits are as many as leave the sum below 2**24 (about 15): no order, and no fusing of a multiplication with an
    addition, then changes a bit (HAWQ-V3's residual adds).

    Args:
        scales: Of the terms.
        output_scale: Of the sum's grid.
        largest: The largest size of the whole numbers of each term.

    Returns:
        A multiplier for each term.
    """
    ratios = [scale / output_scale for scale in scales]
    bound = sum(each * most for each, most in zip(ratios, largest, strict=True))
    exponent = math.floor(math.log2(EXACT / bound))
    while sum(_rounded(each, exponent) * most for each, most in zip(ratios, largest, strict=True)) >= EXACT:
        exponent -= 1
    return [math.ldexp(_rounded(each, exponent), -exponent) for each in ratios]


def _rounded(value: float, exponent: int) -> int:
    return round(math.ldexp(value, exponent))


def requantize(values: torch.Tensor, grid: Grid, low: int, high: int) -> torch.Tensor:
    """Rounds values in units of a grid to its whole numbers, in place where they are of single precision.

    Args:
        values: Float32, any shape; of sign grids only the sign counts.
        grid: The grid.
        low: Its lowest whole number that is used, and...
        high: ... its highest: a ReLU or ReLU6 in front may leave fewer than the grid has.

    Returns:
        Whole numbers, float32.
    """
    if grid.sign:
        return (values >= 0).float().mul_(2).sub_(1)
    return values.round_().clamp_(low, high)


def largest_number(grid: Grid) -> int:
    """Returns the largest size of a grid's whole numbers."""
    return max(abs(grid.low), abs(grid.high))
