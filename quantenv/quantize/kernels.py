"""Accumulators on oneDNN's int8 kernels, where the CPU has VNNI instructions; without them 16-bit sums may saturate."""

import functools
from typing import cast

import torch

from quantenv.quantize.accumulators import FloatAccumulators, sizes, whole_weights
from quantenv.quantize.quantizers import Grid
from quantenv.quantize.requantization import EXACT, largest_number
from quantenv.quantize.storage import CodeStorage
from quantenv.quantize.switched import SwitchedLayer, WeightBits, keep


@functools.cache
def kernel_obstacle() -> str | None:
    """Says why int8 kernels cannot run here, or returns None if they can.

    They are tried on a sum that saturates in 16 bits and must come out exact.
    """
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "this CPU has no VNNI instructions"
    codes = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    ones, zeros = torch.ones(8), torch.zeros(8, dtype=torch.int32)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        sums = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"torch {torch.__version__} lacks the int8 kernels ({str(error).splitlines()[0]})"
    return None if bool((sums == 64 * 255 * 127).all()) else "the int8 kernels saturate on this CPU"


class KernelAccumulators:
    """Accumulators of int8 kernels, which sum them in int32 and put them out in float32.

    Where float32 may not hold one, all are computed by `FloatAccumulators`.
    """

    def __init__(self, layer: SwitchedLayer) -> None:
        """Makes them for a layer."""
        self._layer, self._in_float = layer, FloatAccumulators(layer)
        self._packed: dict[tuple[WeightBits, int], torch.Tensor] = {}

    @property
    def largest(self) -> float:
        """What no accumulator is larger than, the bias left out."""
        return self._in_float.largest

    def select(self, weight_bits: WeightBits, grid: Grid) -> None:
        """Chooses the weights and the input's grid."""
        self._in_float.select(weight_bits, grid)
        self._grid, self._bias = grid, cast(torch.Tensor | None, None)
        self._sizes = sizes(self._layer, weight_bits) * largest_number(grid)
        self._narrow = self.largest < EXACT
        if self._narrow:
            self._weight = self._pack(weight_bits)
            self._ones, self._zeros = torch.ones(len(self._sizes)), torch.zeros(len(self._sizes), dtype=torch.int32)

    def add_bias(self, bias: torch.Tensor) -> None:
        """Chooses the bias."""
        self._in_float.add_bias(bias)
        self._narrow = float((self._sizes + bias.abs()).max()) < EXACT
        self._bias = bias.float()

    def _pack(self, weight_bits: WeightBits) -> torch.Tensor:
        key, layer = (weight_bits, self._grid.low), self._layer
        if key not in self._packed:
            weight = whole_weights(layer, weight_bits).to(torch.int8).contiguous()
            if layer.convolution is None:
                packed = torch.ops.onednn.qlinear_prepack(weight, None)
            else:
                stride, padding, dilation, groups = layer.convolution
                packed = torch.ops.onednn.qconv_prepack(
                    weight, torch.ones(len(weight)), 1.0, -self._grid.low, stride, padding, dilation, groups
                )
            keep(self._packed, key, packed, len(layer.grids) ** 2 + layer.mixtures)
        return self._packed[key]

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """Computes the accumulators of codes."""
        if not self._narrow:
            return self._in_float(CodeStorage().numbers(held, self._grid))
        inputs = (held, 1.0, -self._grid.low, self._weight, self._ones, self._zeros, self._bias)
        if self._layer.convolution is None:
            return torch.ops.onednn.qlinear_pointwise(*inputs, 1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qconv2d_pointwise(
            *inputs, *self._layer.convolution, 1.0, 0, torch.float32, "none", [], ""
        )
