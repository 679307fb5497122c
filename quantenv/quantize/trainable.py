"""The quantized network of one allocation with learned steps: what quantization-aware training trains."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.layers import LayerSpec
from quantenv.quantize.network import Calibration, Site, rewire
from quantenv.quantize.quantizers import LSQQuantizer


class TrainableLayer(nn.Module):
    """A folded Conv2d or Linear whose weights, and input where it is stored finer than wanted, are LSQ-quantized."""

    def __init__(self, layer: nn.Module, weight: LSQQuantizer, requantizer: LSQQuantizer | None) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.convolution = (
            (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        )
        self.weight_quantizer = weight
        self.requantizer = requantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, H, W) or (B, ..., F)."""
        if self.requantizer is not None:
            x = self.requantizer(x)
        weight = self.weight_quantizer(self.weight)
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        stride, padding, dilation, groups = self.convolution
        return F.conv2d(x, weight, self.bias, stride, padding, dilation, groups)


def trainable_network(calibration: Calibration, allocation: Allocation) -> fx.GraphModule:
    """Builds the trainable network of one allocation, its steps initialised from calibration.

    Batch norms are already folded: what they knew of the statistics is in weights and biases, which are trained
    freely, so the trained network and the deployed one are the same arithmetic.

    Args:
        calibration: The calibrated network; not changed.
        allocation: Bits of its layers.

    Returns:
        A graph module in training mode.

    Raises:
        AllocationError: If the allocation is for other layers.
    """
    allocation = allocation.check_fits(calibration.layers)
    bits = dict(zip(allocation.names, allocation.bits, strict=True))

    def make_site(site: Site) -> nn.Module:
        stored = calibration.stored_bits(site, allocation)
        return LSQQuantizer(calibration.site_grids[site.node][stored], site.features)

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        weight_bits, activation_bits = bits[layer.name]
        site = calibration.site_of(layer.name)
        grid = calibration.weight_grids[layer.name][weight_bits]
        requantizer = None
        if activation_bits < calibration.stored_bits(site, allocation):
            requantizer = LSQQuantizer(calibration.site_grids[site.node][activation_bits], site.features)
        weight = LSQQuantizer(grid, layer.params // grid.scale.numel())
        return TrainableLayer(module, weight, requantizer)

    return rewire(calibration, make_site, make_layer).train()
