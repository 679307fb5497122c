"""The quantized network in integer arithmetic: what deployment computes, on oneDNN's int8 kernels.

Stored tensors are uint8 codes (the grid's whole number minus its lowest), weights int8 whole numbers of however few
bits, sums int32. A layer and the site behind it are one kernel call that rescales, rounds and clamps on the way out.
Everything else is computed in float from decoded codes, see `quantenv.quantize.coded`. The kernels are torch's own, so
nothing more is installed, and they are faster here than their float counterparts by 5-10 times where the CPU has VNNI;
without it they may saturate 16-bit sums, so the backend is refused there.
"""

import functools

import torch
from torch import fx

from quantenv.errors import QuantenvError
from quantenv.quantize.accumulators import (
    EXACT,
    Accumulators,
    FloatAccumulators,
    rounded,
    size_of,
    spare_exponent,
    units,
    whole_weights,
)
from quantenv.quantize.coded import decode, encode, to_codes
from quantenv.quantize.network import QuantizedNetwork
from quantenv.quantize.quantizers import Codebook, Grid
from quantenv.quantize.switched import Bits, Setting, Switched, SwitchedLayer, SwitchedSite, WeightBits, keep


@functools.cache
def integer_obstacle() -> str | None:
    """Says why the integer backend cannot run here, or returns None if it can.

    The kernels are tried on a sum that saturates in 16 bits and must come out exact.
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


class IntegerNetwork(QuantizedNetwork):
    """A `QuantizedNetwork` in integer arithmetic; same allocations, same logits up to rounding ties.

    Raises:
        QuantenvError: If the kernels cannot run here; see `integer_obstacle`.
    """

    value_bytes = 1

    def _build(self) -> fx.GraphModule:
        if (obstacle := integer_obstacle() or self.calibration.scheme.integer_obstacle) is not None:
            raise QuantenvError(f"The integer backend cannot run here: {obstacle}. Use backend 'float'.")
        return to_codes(self._simulated, IntegerLayer)

    def _accumulators(self, layer: SwitchedLayer) -> Accumulators:
        kernel = next(each for each in self._switched if each.name == layer.name)
        assert isinstance(kernel, IntegerLayer)
        return KernelAccumulators(kernel)


class IntegerLayer(Switched):
    """A layer, with the site behind it if nothing else reads the layer's output: one int8 kernel call."""

    def __init__(self, layer: SwitchedLayer, target: SwitchedSite | None) -> None:
        """Makes the layer.

        Args:
            layer: The layer in float.
            target: The site that alone reads it, or None.
        """
        super().__init__()
        self.name = layer.name
        self._layer, self._target = (layer,), (target,)  # in tuples: not submodules
        self._packed: dict[tuple[WeightBits, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def layer(self) -> SwitchedLayer:
        """The layer in float, which knows bits and grids."""
        return self._layer[0]

    @property
    def output(self) -> Grid | None:
        """The grid of the codes that it puts out; None if it puts out float sums."""
        return self._output

    def setting(self, bits: Bits) -> Setting:
        """Returns the layer's setting, and the target's."""
        (target,) = self._target
        return self.layer.setting(bits) + (target.setting(bits) if target is not None else ())

    def select(self, setting: Setting) -> None:
        """Chooses packed weights, the input's grid and the output's."""
        layer = self.layer
        weight_bits, activation_bits, stored_bits, rest = layer.take(setting)
        self._stored, self._input = layer.source.grids[stored_bits], layer.source.grids[activation_bits]
        self._recode = activation_bits < stored_bits
        _, self._bias = layer.rounded(weight_bits)
        self._weight, self._weight_scale = self.packed(weight_bits, activation_bits)
        self._zeros = torch.zeros(len(self._weight_scale), dtype=torch.int32)
        self._input_scale = float(self._input.scale)
        (target,) = self._target
        self._output = target.grids[rest[0]] if target is not None else None
        for each in rest[target is not None :]:
            self._weight_scale, self._bias = self._weight_scale * each.gain, each.bias
        # The sign of a sum is no rescaling: taken from the float sum.
        self._in_kernel = self._output is not None and not self._output.sign

    def packed(self, weight_bits: WeightBits, activation_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weights as kernels read them, packed on first use and kept, and their scales, (O,)."""
        key = weight_bits, activation_bits
        if key not in self._packed:
            most = len(self.layer.grids) ** 2 + self.layer.mixtures
            keep(self._packed, key, self._pack(weight_bits, activation_bits), most)
        return self._packed[key]

    def _pack(self, weight_bits: WeightBits, activation_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        layer, grid = self.layer, self.layer.rounding(weight_bits)
        assert not isinstance(grid, Codebook)  # which were refused when the network was made
        scales = grid.scale.flatten().contiguous()
        weight = whole_weights(layer, weight_bits).to(torch.int8).contiguous()
        if layer.convolution is None:
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
        else:
            stride, padding, dilation, groups = layer.convolution
            source = layer.source.grids[activation_bits]
            packed = torch.ops.onednn.qconv_prepack(
                weight, scales, float(source.scale), -source.low, stride, padding, dilation, groups
            )
        return packed, scales

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Maps codes (B, C, H, W) or (B, F) to codes, or to float sums where no site follows."""
        if self._recode:
            codes = encode(decode(codes, self._stored), self._input)
        scale, zero, kind = (
            (float(self._output.scale), -self._output.low, torch.uint8)
            if self._in_kernel and self._output is not None
            else (1.0, 0, torch.float32)
        )
        inputs = (codes, self._input_scale, -self._input.low, self._weight, self._weight_scale, self._zeros)
        if self.layer.convolution is None:
            sums = torch.ops.onednn.qlinear_pointwise(*inputs, self._bias, scale, zero, kind, "none", [], "")
        else:
            sums = torch.ops.onednn.qconv2d_pointwise(
                *inputs, self._bias, *self.layer.convolution, scale, zero, kind, "none", [], ""
            )
        if self._output is None:
            return sums
        if not self._in_kernel:
            return encode(sums, self._output)
        span = self._output.high - self._output.low
        return sums if span == 255 else sums.clamp_(max=span)


class KernelAccumulators:
    """Accumulators of int8 kernels, which sum them in int32 and put them out in float32."""

    def __init__(self, layer: IntegerLayer) -> None:
        """Makes them for a layer, whose packed weights they share."""
        self._layer, self._sizes = layer, dict[WeightBits, float]()
        self._in_float = FloatAccumulators(layer.layer)

    def select(self, weight_bits: WeightBits, activation_bits: int) -> None:
        """Chooses the weights and the input's grid."""
        layer = self._layer.layer
        self._selected = weight_bits, activation_bits
        self._grid = layer.source.grids[activation_bits]
        if weight_bits not in self._sizes:
            size = size_of(whole_weights(layer, weight_bits))
            keep(self._sizes, weight_bits, size, len(layer.grids) + layer.mixtures)
        self._exponent = spare_exponent(self._sizes[weight_bits], self._grid)
        self._weight, scales = self._layer.packed(weight_bits, activation_bits)
        self._ones, self._zeros = torch.ones_like(scales), torch.zeros(len(scales), dtype=torch.int32)
        self.unit = units(layer.rounding(weight_bits), self._grid, self._exponent)

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Computes the accumulators, again in float where one of them is rounded on its way out of the kernel."""
        inputs = (codes, 1.0, -self._grid.low, self._weight, self._ones, self._zeros, None)
        if self._layer.layer.convolution is None:
            sums = torch.ops.onednn.qlinear_pointwise(*inputs, 1.0, 0, torch.float32, "none", [], "")
        else:
            convolution = self._layer.layer.convolution
            sums = torch.ops.onednn.qconv2d_pointwise(*inputs, *convolution, 1.0, 0, torch.float32, "none", [], "")
        if not self._exponent:
            return sums
        if max(map(abs, sums.aminmax())) < EXACT:
            return rounded(sums, self._exponent)
        self._in_float.select(*self._selected)
        return self._in_float(codes)
