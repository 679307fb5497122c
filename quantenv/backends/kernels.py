"""Accumulators on oneDNN's int8 kernels.

With VNNI instructions a kernel adds products of codes and weights in 32 bits. Without, it first adds pairs of them in
16 bits, which saturate above 32,767: weights of 8 bits are then split into two halves, whose sums are added.
"""

import functools
from typing import cast

import torch

from quantenv.backends.accumulators import FloatAccumulators, sizes, whole_weights
from quantenv.quantization.formats import Grid
from quantenv.quantization.requantization import EXACT, largest_number
from quantenv.quantization.storage import CodeStorage
from quantenv.quantization.switched import SwitchedLayer, WeightBits, keep

#: Largest absolute weight of which 16 bits hold the sum of two products with codes: 2 * 64 * 255 < 2**15.
UNSATURATED = 64
#: A convolution's stride, padding, dilation and groups; None of a linear layer.
Convolution = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int] | None


@functools.cache
def kernel_obstacle() -> str | None:
    """Says why int8 kernels cannot run here, or returns None if they can: tried on sums that must come out exact."""
    try:
        exact = _exact(UNSATURATED)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"torch {torch.__version__} lacks the int8 kernels ({str(error).splitlines()[0]})"
    return None if exact else "the int8 kernels saturate on this CPU"


@functools.cache
def saturates() -> bool:
    """Whether the kernels cannot be trusted with pairs of products beyond 16 bits.

    Kernels of other shapes than those tried may be others, so that a CPU without VNNI is never trusted.
    """
    capabilities = torch.cpu.get_capabilities()
    return not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")) or not _exact(127)


def _exact(size: int) -> bool:
    """Whether layers whose weights all have one size, on the largest codes, give exact sums."""
    weight = torch.full((64, 64, 3, 3), size, dtype=torch.int8)
    codes = torch.full((2, 64, 8, 8), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    linear = codes[:, :, 0, 0].contiguous(), weight[:, :, 0, 0].contiguous(), None
    convolution = codes, weight, ((1, 1), (0, 0), (1, 1), 1)
    for inputs, weights, settings in (linear, convolution):
        sums = _sums(inputs, 0, _pack(weights, 0, settings), None, settings, 64)
        if not bool((sums == 255 * size * weights[0].numel()).all()):
            return False
    return True


@functools.cache
def _unscaled(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scales and zeros of weights that are whole numbers."""
    return torch.ones(channels), torch.zeros(channels, dtype=torch.int32)


def _pack(weight: torch.Tensor, zero: int, convolution: Convolution) -> torch.Tensor:
    """Lays out int8 weights for codes whose zero is given; without a convolution they are a linear layer's."""
    if convolution is None:
        return torch.ops.onednn.qlinear_prepack(weight, None)
    return torch.ops.onednn.qconv_prepack(weight, torch.ones(len(weight)), 1.0, zero, *convolution)


def _sums(
    codes: torch.Tensor,
    zero: int,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    convolution: Convolution,
    channels: int,
) -> torch.Tensor:
    """Computes accumulators in float32, which each of them must fit."""
    inputs = (codes, 1.0, zero, packed, *_unscaled(channels), bias)
    if convolution is None:
        return torch.ops.onednn.qlinear_pointwise(*inputs, 1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qconv2d_pointwise(*inputs, *convolution, 1.0, 0, torch.float32, "none", [], "")


class KernelAccumulators:
    """Accumulators of int8 kernels, which sum them in int32 and put them out in float32.

    Where float32 may not hold one, all are computed by `FloatAccumulators`; so are those of layers that the kernels do
    not know: convolutions over three dimensions, and transposed ones.
    """

    def __init__(self, layer: SwitchedLayer) -> None:
        """Makes them for a layer."""
        self._layer, self._in_float = layer, FloatAccumulators(layer)
        geometry = layer.geometry
        self._known = geometry.op.dims < 3 and not geometry.op.transposed
        self._line = geometry.op.dims == 1  # it runs as an image of one row
        self._convolution: Convolution = None
        if geometry.op.dims:
            stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
            if self._line:
                stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
            self._convolution = stride, padding, dilation, geometry.groups
        self._packed: dict[tuple[WeightBits, int], list[torch.Tensor]] = {}

    @property
    def largest(self) -> float:
        """What no accumulator is larger than, the bias left out."""
        return self._in_float.largest

    def select(self, weight_bits: WeightBits, grid: Grid) -> None:
        """Chooses the weights and the input's grid."""
        self._in_float.select(weight_bits, grid)
        self._grid, self._bias = grid, cast(torch.Tensor | None, None)
        self._sizes = sizes(self._layer, weight_bits) * largest_number(grid)
        self._narrow = self._known and self.largest < EXACT
        if self._narrow:
            self._parts = self._packed_parts(weight_bits)

    def add_bias(self, bias: torch.Tensor) -> None:
        """Chooses the bias."""
        self._in_float.add_bias(bias)
        self._narrow = self._known and float((self._sizes + bias.abs()).max()) < EXACT
        self._bias = bias.float()

    def _packed_parts(self, weight_bits: WeightBits) -> list[torch.Tensor]:
        """Returns the weights, or two halves of them where their sums would saturate."""
        key, layer = (weight_bits, self._grid.low), self._layer
        if key not in self._packed:
            weight = whole_weights(layer, weight_bits).to(torch.int8).contiguous()
            weight = weight.unsqueeze(-2) if self._line else weight
            parts = [weight]
            if int(weight.int().abs().max()) > UNSATURATED and saturates():
                parts = [half := weight >> 1, weight - half]  # of one sign each: no sum grows
            packed = [_pack(part, -self._grid.low, self._convolution) for part in parts]
            keep(self._packed, key, packed, len(layer.grids) ** 2 + layer.mixtures)
        return self._packed[key]

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """Computes the accumulators of codes."""
        if not self._narrow:
            return self._in_float(CodeStorage().numbers(held, self._grid))
        zero, settings, channels = -self._grid.low, self._convolution, len(self._sizes)
        held = held.unsqueeze(-2) if self._line else held
        first, *others = self._parts
        total = _sums(held, zero, first, self._bias, settings, channels)
        for part in others:
            total.add_(_sums(held, zero, part, None, settings, channels))
        return total.squeeze(-2) if self._line else total
