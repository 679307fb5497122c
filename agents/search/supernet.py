"""A network that holds every bit option at once, weighed: what a differentiable search differentiates."""

from collections.abc import Sequence

import torch
from torch import fx, nn

from quantenv.core.layers import LayerSpec
from quantenv.graph.ops import geometry_of
from quantenv.graph.sites import Site
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.corrections import EPSILON
from quantenv.quantization.formats import Codebook, Grid, Rounding
from quantenv.quantization.simulated import rewire
from quantenv.training.qat.base import LSQQuantizer


class MixedLayer(nn.Module):
    """A folded Conv2d or Linear with weighed weights and input (Cai and Vasconcelos, CVPR 2020, equations 17 to 20).

    One convolution serves all options: of quantized weights, and of roundings of the input, the weighed sum is taken.
    The weights are those of post-training quantization and are not trained. Where the scheme estimates a batch norm
    again, every batch is normalised by its own statistics, as batch norms in training are. A bias is rounded to whole
    multiples of each pair of options' steps, as the quantized network has it, and the weighed sum of these is added.

    Attributes:
        weight_share: Share of each weight option, (W,).
        input_share: Share of each activation option, (A,).
    """

    def __init__(
        self,
        layer: nn.Module,
        weights: torch.Tensor,
        biases: torch.Tensor | None,
        units: torch.Tensor,
        inputs: Sequence[LSQQuantizer],
        moments: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Makes the layer.

        Args:
            layer: The folded float layer.
            weights: Its quantized weights by option, (W, ...).
            biases: Its bias under each of them, (W, O), or None.
            units: What biases are multiples of under each of them and each rounding of the input, (W, A, O); 0 for
                those that are multiples of nothing.
            inputs: Quantizers of its input by option, length A.
            moments: Mean and variance by channel, (O,), that its outputs are to have; None leaves them as they are.
        """
        super().__init__()
        self.weights = weights
        self.inputs = nn.ModuleList(inputs)
        self.biases, self.units, self.moments = biases, units.double(), moments
        self.geometry = geometry_of(layer)
        self.weight_share = torch.full((len(weights),), 1 / len(weights))
        self.input_share = torch.full((len(inputs),), 1 / len(inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, ...) or (B, ..., F)."""
        rounded = [quantizer(x) for quantizer in self.inputs]
        if len(rounded) == 1:
            x = rounded[0]
        else:
            x = sum(share * each for share, each in zip(self.input_share, rounded, strict=True))
        weight = torch.tensordot(self.weight_share, self.weights, dims=1)
        bias = None
        if self.biases is not None and self.moments is None:  # which take its place
            bias = self.weight_share @ self.biases + self._rounding(self.biases[:, None], self.units)
        outputs = self.geometry.run(x, weight, bias)
        return outputs if self.moments is None else self._restored(outputs, *self.moments)

    def _restored(self, outputs: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Gives each channel of a batch's outputs the wanted mean and variance."""
        channel = self.geometry.channels % outputs.dim()
        others = [dim for dim in range(outputs.dim()) if dim != channel]
        seen, centre = torch.var_mean(outputs, others, correction=0, keepdim=True)
        mean, variance = mean.view(centre.shape), variance.view(centre.shape)
        slack = (EPSILON * variance).clamp(min=torch.finfo(outputs.dtype).tiny)  # a channel of constants has gain 1
        gain = ((variance + slack) / (seen + slack)).sqrt()
        rounding = self._rounding((mean - gain * centre).flatten(), self.units * gain.flatten())
        return (outputs - centre) * gain + mean + rounding.view(centre.shape)

    def _rounding(self, bias: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Returns what rounding does to a bias, (O,) or (W, 1, O), under the shares, (O,)."""
        with torch.no_grad():
            whole = (bias / torch.where(units > 0, units, 1.0)).round() * units
            change = torch.where(units > 0, whole - bias, 0.0).to(self.weights.dtype)
        return torch.einsum("w,a,wao->o", self.weight_share, self.input_share, change)


def mixed_network(
    calibration: Calibration, weight_bits: Sequence[Sequence[int]], activation_bits: Sequence[Sequence[int]]
) -> tuple[fx.GraphModule, list[MixedLayer]]:
    """Builds the network of all options, in which nothing is trained but what the shares are computed from.

    Gradients pass roundings straight through, within their range. Sites are stored in 8 bits and rounded again by each
    layer that reads them, so that with shares of one the network differs from the quantized one of that allocation by
    rounding twice at most, and by whose statistics batch norms go by.

    Args:
        calibration: The calibrated network; not changed.
        weight_bits: Options of each layer's weights, length L.
        activation_bits: Options of each layer's input, length L.

    Returns:
        The network, and its layers in the order of `calibration.layers`.
    """
    indices = {layer.name: index for index, layer in enumerate(calibration.layers)}
    mixed: list[MixedLayer] = []

    def rounding(grid: Grid, features: int) -> LSQQuantizer:
        quantizer = LSQQuantizer(grid, features)
        quantizer.requires_grad_(False)
        return quantizer

    def make_site(site: Site) -> nn.Module:
        return rounding(calibration.site_grids[site.node][8], site.features)

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        index, site = indices[layer.name], calibration.site_of(layer.name)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        weights = torch.stack([calibration.rounded(layer.name, bits) for bits in weight_bits[index]])
        biases = [calibration.bias(layer.name, bits) for bits in weight_bits[index]]
        kept = [bias for bias in biases if bias is not None]
        grids = [calibration.site_grids[site.node][bits] for bits in activation_bits[index]]
        roundings = [calibration.weight_grids[layer.name][bits] for bits in weight_bits[index]]
        units = torch.stack([torch.stack([_unit(each, grid) for grid in grids]) for each in roundings])
        units = units * weights.flatten(2).any(2)[:, None]  # a channel of zeros has whichever unit holds its bias
        inputs = [rounding(grid, site.features) for grid in grids]
        moments = calibration.reestimated.get(layer.name)
        mixed.append(MixedLayer(module, weights, torch.stack(kept) if kept else None, units, inputs, moments))
        return mixed[-1]

    network = rewire(calibration, make_site, make_layer)
    return network.eval(), mixed


def _unit(rounding: Rounding, grid: Grid) -> torch.Tensor:
    """Returns what a sum of 1 stands for by channel, (O,); 0 under a codebook, whose sums are no whole numbers."""
    scale = rounding.scale.flatten()
    return torch.zeros_like(scale) if isinstance(rounding, Codebook) else scale * grid.scale
