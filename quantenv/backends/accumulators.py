"""The whole numbers that a layer's integer arithmetic sums up, exact, on whatever computes them."""

import itertools
import math
from typing import Protocol

import torch

from quantenv.quantization.formats import Codebook, Grid
from quantenv.quantization.requantization import EXACT, largest_number
from quantenv.quantization.switched import SwitchedLayer, WeightBits, keep


class Accumulators(Protocol):
    """Computes a layer's accumulators: sums of products of its input's whole numbers and its weights', and the bias."""

    @property
    def largest(self) -> float:
        """What no accumulator is larger than, the bias left out."""

    def select(self, weight_bits: WeightBits, grid: Grid) -> None:
        """Chooses the weights and the input's grid; without a bias."""

    def add_bias(self, bias: torch.Tensor) -> None:
        """Chooses the bias, float64 (O,), whole numbers."""

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """Computes exact accumulators, in float32 where it holds them all, else in float64.

        Args:
            held: The input's whole numbers in the storage of what computes them, (B, C, ...) or (B, ..., F).
        """


class FloatAccumulators:
    """Accumulators in float arithmetic.

    Single precision is exact, in any order of the sums, while the sum of |weight| times the largest input stays below
    2**24 in every output channel. Where it does not, input channels are summed in as many parts as it takes, and the
    parts in double precision; so are all products where one input channel alone is too much, or channels are grouped.
    """

    def __init__(self, layer: SwitchedLayer) -> None:
        """Makes them for a layer."""
        self._layer = layer

    def select(self, weight_bits: WeightBits, grid: Grid) -> None:
        """Chooses the weights and the input's grid."""
        layer = self._layer
        self._weight = whole_weights(layer, weight_bits)
        self._codebook = isinstance(layer.rounding(weight_bits), Codebook)
        self._most = largest_number(grid)
        self._sizes = sizes(layer, weight_bits) * self._most
        self.largest = float(self._sizes.max())
        self._bias: torch.Tensor | None = None
        self._narrow = self.largest < EXACT and not self._codebook

    def add_bias(self, bias: torch.Tensor) -> None:
        """Chooses the bias."""
        self._narrow = not self._codebook and float((self._sizes + bias.abs()).max()) < EXACT
        self._bias = bias.float() if self._narrow else bias

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """Computes the accumulators of whole numbers in float32."""
        if self._narrow:
            return self._sums(held, self._weight, self._bias)
        total = torch.zeros(())
        for channels, precision in self._cut():
            inputs = held[:, channels] if self._layer.geometry.op.dims else held[..., channels]
            weight = self._weight[:, channels] if channels != slice(None) else self._weight
            total = total + self._sums(inputs.to(precision), weight.to(precision), None).double()
        if self._bias is None:
            return total
        return total.add_(self._bias.view(self._layer.geometry.shape))

    def _cut(self) -> list[tuple[slice, torch.dtype]]:
        """Returns parts of the input channels, and the precision that holds the sums of each."""
        everything = slice(None)
        if self.largest < EXACT and not self._codebook:
            return [(everything, torch.float32)]
        geometry = self._layer.geometry
        added = self._weight.double().abs().flatten(2).sum(2) if geometry.op.dims else self._weight.double().abs()
        most = (added.amax(0) * self._most).tolist()  # by input channel, in any output channel
        if self._codebook or geometry.groups > 1 or max(most) >= EXACT:
            return [(everything, torch.float64)]
        starts, total = [0], 0.0
        for channel, size in enumerate(most):
            if total + size >= EXACT:
                starts, total = [*starts, channel], 0.0
            total += size
        return [(slice(*edges), torch.float32) for edges in itertools.pairwise([*starts, len(most)])]

    def _sums(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._layer.geometry.run(inputs, weight, bias)


def whole_weights(layer: SwitchedLayer, weight_bits: WeightBits) -> torch.Tensor:
    """Returns weights divided by their channel's scale, float32 (O, ...): whole numbers, or centroids of a codebook.

    They are made on first use and kept, as the weights themselves are.
    """
    if weight_bits not in layer.numbers:
        scale, (weight, _) = layer.rounding(weight_bits).scale, layer.rounded(weight_bits)
        divided = weight / torch.where(scale > 0, scale, 1.0)
        number = divided if isinstance(layer.rounding(weight_bits), Codebook) else divided.round()
        size = number.double().abs().flatten(1).sum(1)
        keep(layer.numbers, weight_bits, (number, size), len(layer.grids) + layer.mixtures)
    return layer.numbers[weight_bits][0]


def sizes(layer: SwitchedLayer, weight_bits: WeightBits) -> torch.Tensor:
    """Returns each channel's sum of absolute weights in whole numbers, float64 (O,)."""
    whole_weights(layer, weight_bits)
    return layer.numbers[weight_bits][1]


def narrowed(sums: torch.Tensor, largest: float, whole: bool = True) -> tuple[torch.Tensor, int]:
    """Rounds accumulators to the power of two that leaves them within `EXACT`.

    Args:
        sums: Exact accumulators.
        largest: What no accumulator of any batch is larger than.
        whole: Whether they are whole numbers, which are left as they are where none can leave it. Those of codebooks
            are always rounded, to a power as small as it may be.

    Returns:
        The accumulators divided by that power of two, float32, and its exponent.
    """
    exponent = math.frexp(largest / EXACT)[1]
    if whole and exponent <= 0:
        return sums.float(), 0
    return sums.double().mul(2.0**-exponent).round_().float(), exponent
