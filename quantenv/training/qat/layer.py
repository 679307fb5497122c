"""A layer of the network that quantization-aware training trains."""

import torch
from torch import nn

from quantenv.graph.ops import geometry_of
from quantenv.quantization.corrections import rescaled
from quantenv.quantization.requantization import LARGEST_BIAS
from quantenv.training.qat.base import Quantizer
from quantenv.training.qat.grouped import parts_of
from quantenv.training.qat.norms import as_affine
from quantenv.training.qat.quantizers import TINY
from quantenv.training.qat.whole_numbers import exact_sums, numbers_of, on_grid


class TrainableLayer(nn.Module):
    """A folded layer whose weights, and input where it is stored finer than wanted, are quantized.

    What is trained is a float bias; what is added is a whole multiple of the input's step times the weights', where
    integer hardware sums them up (see `on_grid`). With a live batch norm there is no bias until the norm is folded. The
    bias stays as it is where weights are centroids of a codebook, or the input's grid has an offset that is no multiple
    of its step: their sums are on no grid.

    Evaluated, without gradients, it sums whole numbers where there are such grids (see `exact_sums`): the outputs are
    the same, whatever they are computed by and together with.
    """

    def __init__(
        self,
        layer: nn.Module,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        quantizer: Quantizer,
        source: Quantizer,
        requantizer: Quantizer | None,
        norm: nn.BatchNorm2d | None = None,
    ) -> None:
        """Makes the layer.

        Args:
            layer: The folded float layer.
            weight: What its weights start from.
            bias: What its bias starts from.
            quantizer: Rounds the weights.
            source: Rounds what it reads where that is stored, outside of this layer.
            requantizer: Rounds the input again, or None.
            norm: Normalises the output until it is folded, or None.
        """
        super().__init__()
        self.weight = nn.Parameter(quantizer.adopt(weight))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.geometry = geometry_of(layer)
        self.weight_quantizer = quantizer
        self.requantizer = requantizer
        self._source = (source,)  # in a tuple, so that it does not become a submodule
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, ...) or (B, ..., F)."""
        if self.requantizer is not None:
            x = self.requantizer(x)
        weight = self.weight_quantizer(self.weight)
        units = self._units()
        bias: torch.Tensor | None = self.bias
        if units is not None and bias is not None:
            bias = on_grid(bias, units[0].flatten() * units[1].flatten(), weight)
        learning = self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
        if units is None or learning:
            output = self.geometry.run(x, weight, bias)
        else:
            output = self._evaluated(x, weight, bias, *units)
        return output if self.norm is None else self.norm(output)

    def _evaluated(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        weight_unit: torch.Tensor,
        input_unit: torch.Tensor,
    ) -> torch.Tensor:
        numbers = exact_sums(numbers_of(x, input_unit), numbers_of(weight, weight_unit), self.geometry)
        shape = self.geometry.shape
        output = numbers.mul_((weight_unit.flatten() * input_unit.flatten()).view(shape))
        return output if bias is None else output.add_(bias.view(shape))

    def _units(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns what weights, (O, 1, ...), and input are whole multiples of, if both are of anything."""
        of_weights, of_input = self.weight_quantizer.unit(), (self.requantizer or self._source[0]).unit()
        return None if of_weights is None or of_input is None else (of_weights, of_input)

    def fold(self) -> None:
        """Puts what its batch norm does into weights and bias, which stay on as many values."""
        assert self.norm is not None
        gain, shift = as_affine(self.norm)
        self.norm = None
        self.rescale(gain, shift)

    @torch.no_grad()
    def rescale(self, gain: torch.Tensor, shift: torch.Tensor) -> None:
        """Makes its output ``gain * output + shift``, both of shape (O,); gain >= 0 with codebooks."""
        weight, bias = rescaled(self.weight, self.bias, gain, shift)
        self.weight.copy_(weight)
        for quantizer, channels in parts_of(self.weight_quantizer):
            scale = quantizer.scale
            assert isinstance(scale, torch.Tensor)
            # A channel that never varies has gain 0. A learned step may have become negative: its size counts.
            scale.copy_((scale * gain[channels].view(scale.shape)).abs().clamp(min=TINY))
        self._hold(bias)
        self.bias = nn.Parameter(bias)

    def _hold(self, bias: torch.Tensor) -> None:
        """Makes steps as coarse as it takes for an int32 to hold the bias, (O,): those of channels of hardly a gain."""
        units = self._units()
        if units is None:
            return
        needed = bias.abs().double() / LARGEST_BIAS / units[1].flatten().double()
        factor = (needed / units[0].flatten().double()).clamp(min=1)
        factor = torch.where(factor.isfinite(), factor, 1.0)
        for quantizer, channels in parts_of(self.weight_quantizer):
            scale = quantizer.scale
            assert isinstance(scale, torch.Tensor)
            scale.copy_(scale.double() * factor[channels].view(scale.shape))
