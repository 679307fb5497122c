"""The modules of a quantized network that an allocation switches: all bit options prepared once, chosen by swapping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from quantenv.graph.ops import geometry_of
from quantenv.quantization.calibration import WeightBits, folded_weight, grouped_rounding, stored_bits
from quantenv.quantization.formats import Codebook, Grid, Rounding, WeightRounding, quantize
from quantenv.quantization.requantization import ChannelScales, channel_scales

#: (weight bits, activation bits) of every layer, in execution order: `Allocation.bits`.
Bits = tuple[tuple[int, int], ...]
#: What one switched module is told by an allocation: bits, and a `ChannelMap` where statistics are estimated again.
Setting = tuple[Any, ...]

#: Mixtures of bits, between the channel groups of a layer, whose weights are kept, the latest ones: as many as take
#: `MIXTURE_BYTES`, within these limits.
LEAST_MIXTURES, MOST_MIXTURES, MIXTURE_BYTES = 8, 64, 16 << 20
#: Scales of a layer that are kept, the latest ones: under re-estimation each allocation may have its own.
MOST_SCALES = 1024


def keep(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Puts a value into a dictionary that holds at most so many; the oldest one goes."""
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


@dataclass(frozen=True, order=True)
class ChannelMap:
    """What batch-norm re-estimation does to a layer's outputs by channel; equal to itself alone."""

    number: int
    """No other map has it."""
    gain: torch.Tensor = field(compare=False)
    """What weights, and so outputs without the bias, are multiplied by, float32 (O,)."""
    bias: torch.Tensor = field(compare=False)
    """The bias that takes the place of the layer's own, float32 (O,)."""


class Switched(nn.Module):
    """A module of the quantized graph that an allocation switches."""

    name = ""
    """Name of the layer that it is, if it is one."""

    def setting(self, bits: Bits) -> Setting:
        """Returns the part of an allocation that this module depends on: equal settings, equal outputs."""
        raise TypeError(f"{type(self).__name__} does not say what it depends on.")

    def select(self, setting: Setting) -> None:
        """Switches to a setting."""
        raise TypeError(f"{type(self).__name__} cannot be switched.")


class SwitchedSite(Switched):
    """A site whose grids are all at hand, chosen by the bits it is stored at: the most any of its readers wants."""

    def __init__(self, grids: dict[int, Grid], readers: Sequence[int], shared: bool) -> None:
        super().__init__()
        self.grids, self.readers, self.shared = grids, readers, shared
        self.grid = grids[8]

    def setting(self, bits: Bits) -> Setting:
        """Returns (stored bits,). Of channel groups, which agree, the first of a layer is among the readers."""
        return (stored_bits([bits[index][1] for index in self.readers], self.shared),)

    def select(self, setting: Setting) -> None:
        """Chooses the stored bits."""
        self.grid = self.grids[setting[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds to the chosen grid."""
        return quantize(x, self.grid)


class SwitchedLayer(Switched):
    """A layer whose quantized weights are all at hand, chosen by bits."""

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        grids: Mapping[int, Rounding],
        indices: Sequence[int],
        source: SwitchedSite,
        round_weights: Callable[[WeightBits], torch.Tensor],
        make_bias: Callable[[WeightBits], torch.Tensor | None],
        channels: Sequence[torch.Tensor] = (),
    ) -> None:
        """Makes the layer.

        Args:
            name: Its name.
            layer: The folded float layer.
            grids: What its weights are rounded to, by bits.
            indices: Its places in an allocation: one, or one for each channel group.
            source: The site it reads.
            round_weights: Maps bits to its rounded weights.
            make_bias: Maps bits to its bias.
            channels: Output channels of its channel groups; none if it is whole.
        """
        super().__init__()
        self.name = name
        self.float_weight = folded_weight(layer).detach()
        self._round_weights, self._make_bias = round_weights, make_bias
        self.bias: torch.Tensor | None = None
        self.geometry = geometry_of(layer)
        self.grids, self.indices, self.channels = grids, tuple(indices), tuple(channels)
        self._source = (source,)  # in a tuple, so that it does not become a submodule
        size = self.float_weight.numel() * self.float_weight.element_size()
        self.mixtures = max(LEAST_MIXTURES, min(MOST_MIXTURES, MIXTURE_BYTES // size))
        self.cache: dict[WeightBits, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.numbers: dict[WeightBits, tuple[torch.Tensor, torch.Tensor]] = {}
        """Weights as whole numbers, and by channel the sum of their sizes; see `quantenv.backends.accumulators`."""
        self._scales: dict[tuple[WeightBits, int, int], ChannelScales] = {}
        self.weight = self.float_weight
        self.input_grid: Grid | None = None

    @property
    def source(self) -> SwitchedSite:
        """The site that the layer reads."""
        return self._source[0]

    def setting(self, bits: Bits) -> Setting:
        """Returns (weight bits of each channel group, activation bits, stored bits of the input)."""
        weights = tuple(bits[index][0] for index in self.indices)
        return (*weights, bits[self.indices[0]][1], *self.source.setting(bits))

    def take(self, setting: Setting) -> tuple[WeightBits, int, int, Setting]:
        """Takes a setting apart: weight bits, activation bits, stored bits of the input, and what else is told."""
        count = len(self.indices)
        weights, (activation_bits, stored_bits, *rest) = setting[:count], setting[count:]
        return weights[0] if len(set(weights)) == 1 else weights, activation_bits, stored_bits, tuple(rest)

    def select(self, setting: Setting) -> None:
        """Chooses the weights' bits, and a coarser grid for the input where it is stored finer than wanted."""
        weight_bits, activation_bits, stored_bits, maps = self.take(setting)
        self.weight, bias = self.rounded(weight_bits)
        for each in maps:
            self.weight = self.weight * each.gain.view((-1,) + (1,) * (self.weight.dim() - 1))
        scales = self.scales(weight_bits, activation_bits, *maps)
        self.bias = torch.from_numpy(scales.bias_value).float() if maps or bias is not None else None
        self.input_grid = self.source.grids[activation_bits] if activation_bits < stored_bits else None

    def scales(
        self, weight_bits: WeightBits, activation_bits: int, restored: ChannelMap | None = None
    ) -> ChannelScales:
        """Returns what accumulators stand for, and the bias among them.

        Args:
            weight_bits: Bits of the weights.
            activation_bits: Bits of the input.
            restored: What batch-norm re-estimation makes of gain and bias, if it does.
        """
        key = weight_bits, activation_bits, -1 if restored is None else restored.number
        if key not in self._scales:
            rounding, (weight, bias) = self.rounding(weight_bits), self.rounded(weight_bits)
            bias = bias if restored is None else restored.bias
            scale = rounding.scale.flatten() if restored is None else rounding.scale.flatten() * restored.gain
            made = channel_scales(
                scale.numpy(),
                self.source.grids[activation_bits].scale.numpy(),
                np.zeros(len(scale)) if bias is None else bias.double().numpy(),
                silent=(~weight.flatten(1).any(1)).numpy(),
                whole=not isinstance(rounding, Codebook),
            )
            keep(self._scales, key, made, MOST_SCALES)
        return self._scales[key]

    def rounding(self, weight_bits: WeightBits) -> WeightRounding:
        """Returns the grids that the weights are rounded to."""
        if isinstance(weight_bits, int):
            return self.grids[weight_bits]
        return grouped_rounding(self.grids, self.channels, weight_bits)

    def rounded(self, weight_bits: WeightBits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns weights and bias, made on first use and kept; mixed bits, of which there are many, for a while."""
        if weight_bits not in self.cache:
            made = self._round_weights(weight_bits), self._make_bias(weight_bits)
            keep(self.cache, weight_bits, made, len(self.grids) + self.mixtures)
        return self.cache[weight_bits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, ...) or (B, ..., F)."""
        if self.input_grid is not None:
            x = quantize(x, self.input_grid)
        return self.geometry.run(x, self.weight, self.bias)
