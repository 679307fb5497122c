"""How one tensor is rounded: grids and codebooks (`quantize`), and what every trained quantizer is.

A grid is a step `scale` and whole-number bounds `low..high`; the quantized value is
``scale * clamp(round(x / scale), low, high)``. A zero-point z of an affine quantizer with b bits is the same thing
with ``low = -z, high = 2**b - 1 - z`` (Jacob et al. 2018, eq. 1), so real zero is always representable exactly.
One bit on data of both signs is ``scale * sign(x)`` (Rastegari et al. 2016, XNOR-Net), never round-and-clamp,
which would have three values.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from quantenv.core.arguments import whole_number

#: How far within the cell of its rounded value a weight begins that training takes over, in steps.
MARGIN = 1 / 16


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


@dataclass(frozen=True)
class Codebook:
    """The values a tensor of weights may take, wherever they lie: ``scale * values[index]`` (see `kmeans`)."""

    bits: int
    """Bit-width of an index, 1-8."""
    scale: torch.Tensor
    """What each channel was divided by before all were clustered together, >= 0, broadcastable to the weights."""
    values: torch.Tensor
    """Centroids in ascending order, shape (2**bits,); equal ones where fewer are needed."""

    def indices(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the index of each element's nearest centroid, int64, the shape of `x`."""
        between = (self.values[1:] + self.values[:-1]) / 2
        return torch.bucketize((x / torch.where(self.scale > 0, self.scale, 1.0)).contiguous(), between)


@dataclass(frozen=True, eq=False)
class GroupedGrid:
    """Grids of the channel groups of one tensor of weights, which may differ in bits."""

    channels: tuple[torch.Tensor, ...]
    """Output channels of each group, int64; each channel is in one group."""
    grids: tuple[Grid, ...]
    """Grid of each group, with a scale of shape (channels of the group, 1, ...)."""

    @cached_property
    def scale(self) -> torch.Tensor:
        """The scale of every channel, (O, 1, ...)."""
        return torch.cat([grid.scale for grid in self.grids])[torch.cat(self.channels).argsort()]


#: What a tensor can be rounded to; and what a layer's weights can be.
Rounding = Grid | Codebook
WeightRounding = Rounding | GroupedGrid


def scaled(grid: WeightRounding, gain: torch.Tensor) -> WeightRounding:
    """Returns what weights are rounded to once each channel was multiplied by a gain >= 0, (O,)."""
    if isinstance(grid, GroupedGrid):
        parts = zip(grid.grids, grid.channels, strict=True)
        grids = [replace(part, scale=part.scale * gain[channels].view(part.scale.shape)) for part, channels in parts]
        return GroupedGrid(grid.channels, tuple(grids))
    return replace(grid, scale=grid.scale * gain.view(grid.scale.shape))


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


def quantize(x: torch.Tensor, grid: WeightRounding) -> torch.Tensor:
    """Rounds to the nearest value of a grid or codebook, or of each channel's own grid.

    Args:
        x: Any float tensor that `grid.scale` broadcasts to.
        grid: The grid or grids, or the codebook.

    Returns:
        A new tensor of the same shape and memory format, holding its values.
    """
    if isinstance(grid, GroupedGrid):
        rounded = torch.empty_like(x)
        for channels, part in zip(grid.channels, grid.grids, strict=True):
            rounded[channels] = quantize(x[channels], part)
        return rounded
    if isinstance(grid, Codebook):
        return torch.empty_like(x).copy_(grid.values[grid.indices(x)].mul_(grid.scale))
    if grid.sign:
        return torch.where(x >= 0, grid.scale, -grid.scale)
    # Composed on purpose: torch.fake_quantize_* doubles the time of a forward pass on CPU. Division, not
    # multiplication by the reciprocal, is what QuantizeLinear does: ties then fall the same way.
    return x.div(grid.scale).round_().clamp_(grid.low, grid.high).mul_(grid.scale)


def within_cells(x: torch.Tensor, rounded: torch.Tensor, grid: Grid | GroupedGrid) -> torch.Tensor:
    """Moves values no further than it takes for nearest rounding to round them as they are to be rounded.

    Args:
        x: Any float tensor that `grid.scale` broadcasts to.
        rounded: What each value is to be rounded to, on the grid or grids.
        grid: The grid or grids.

    Returns:
        A new tensor: `x` where `quantize` gives `rounded`, elsewhere what lies `MARGIN` steps within the cell of that.
    """
    if isinstance(grid, GroupedGrid):
        moved = x.clone()
        for channels, part in zip(grid.channels, grid.grids, strict=True):
            moved[channels] = within_cells(x[channels], rounded[channels], part)
        return moved
    inner = (1.0 if grid.sign else 0.5) - MARGIN
    nearest = torch.maximum(torch.minimum(x, rounded + inner * grid.scale), rounded - inner * grid.scale)
    return torch.where(quantize(x, grid) == rounded, x, nearest)


def power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """Returns powers of two near magnitudes >= 0, 1 for zeros: to divide by them changes no digit of any value.

    Squares of what was divided by them stay within float32, whatever its unit.
    """
    exponents = torch.frexp(largest).exponent.clamp(-120, 126)  # beyond, not all values could be divided exactly
    return torch.pow(2.0, exponents.double()).to(largest.dtype)


def _check_bits(bits: int) -> None:
    whole_number(bits, "A bit-width", 1, 8)
