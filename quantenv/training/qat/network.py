"""The quantized network of one allocation with trained quantizers: what quantization-aware training trains."""

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.graph.sites import Site
from quantenv.quantization.calibration import Calibration, grouped_rounding
from quantenv.quantization.corrections import reestimate
from quantenv.quantization.formats import Codebook, GroupedGrid, Rounding, quantize, scaled, within_cells
from quantenv.quantization.simulated import rewire
from quantenv.training.qat.base import LSQQuantizer, Quantizer
from quantenv.training.qat.fused import FusedLSQQuantizer
from quantenv.training.qat.grouped import GroupedQuantizer
from quantenv.training.qat.layer import TrainableLayer
from quantenv.training.qat.norms import unfolded
from quantenv.training.qat.quantizers import activation_quantizer as find_activation_quantizer
from quantenv.training.qat.quantizers import weight_quantizer as find_weight_quantizer

#: What trains the weights of a scheme if nothing else is said, by the scheme's weights.
OF_SCHEME = {"linear": "lsq", "k-means": "k-means"}


def trainable_network(
    calibration: Calibration,
    allocation: Allocation,
    weight_quantizer: str | None = None,
    activation_quantizer: str = "lsq",
    fused: bool = False,
    live_norms: bool | None = False,
) -> fx.GraphModule:
    """Builds the trainable network of one allocation, its quantizers initialised from calibration.

    Batch norms are folded: what they knew of the statistics is in weights and biases, which are trained freely, so the
    trained network and the deployed one are the same arithmetic. With `live_norms` convolutions get theirs back for
    the time of training, see `quantenv.training.qat.norms`, until `fold_norms`.

    Args:
        calibration: The calibrated network; not changed. Training starts from what the steps of its scheme made of
            weights and biases; where it learns how weights are rounded, from weights that nearest rounding rounds so.
        allocation: Bits of its layers.
        weight_quantizer: A name of `WEIGHT_QUANTIZERS`; by default the scheme's: lsq, or k-means.
        activation_quantizer: A name of `ACTIVATION_QUANTIZERS`.
        fused: Whether LSQ is compiled, see `quantenv.training.qat.fused`; convolutions then run channels-last.
        live_norms: Whether convolutions that batch norms were folded into are normalised while they are trained; None
            for wherever the weight quantizer can be folded into.

    Returns:
        A graph module in training mode.

    Raises:
        AllocationError: If the allocation is for other layers.
        QuantenvError: If a quantizer is unknown, or cannot give channel groups bits of their own and there are any, or
            cannot be folded into and norms are live.
    """
    allocation = allocation.check_fits(calibration.layers)
    bits = calibration.bits_of(allocation)
    kind = weight_quantizer or OF_SCHEME[calibration.scheme.weights]
    if kind == "k-means" and any(calibration.channels.values()):
        raise QuantenvError(
            "The quantizer 'k-means' has one codebook for a layer, which its channel groups cannot share at different "
            "bits: use 'lsq', 'mid-rise', 'linear' or 'dorefa'."
        )
    if live_norms is None:
        live_norms = kind != "k-means"
    if kind == "k-means" and live_norms:
        raise QuantenvError(
            "The quantizer 'k-means' has one codebook for all channels, which a negative factor of a live batch norm "
            "cannot be folded into: use 'lsq', 'mid-rise', 'linear' or 'dorefa', or keep batch norms folded."
        )
    of_weights, of_activations = find_weight_quantizer(kind), find_activation_quantizer(activation_quantizer)
    if fused:
        of_weights, of_activations = (
            FusedLSQQuantizer if each is LSQQuantizer else each for each in (of_weights, of_activations)
        )
    grids: Mapping[str, Mapping[int, Rounding]] = (
        calibration.codebooks if kind == "k-means" else calibration.linear_grids
    )
    (maps,) = QuantizedNetwork(calibration).maps([allocation]) if calibration.reestimated else ({},)

    stores: dict[str, Quantizer] = {}

    def make_site(site: Site) -> nn.Module:
        stored = calibration.stored_bits(site, allocation)
        stores[site.node] = of_activations(calibration.site_grids[site.node][stored], site.features)
        return stores[site.node]

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        weight_bits, activation_bits = bits[layer.name]
        site = calibration.site_of(layer.name)
        grid = grouped_rounding(grids[layer.name], calibration.channels[layer.name], weight_bits)
        requantizer = None
        if activation_bits < calibration.stored_bits(site, allocation):
            requantizer = of_activations(calibration.site_grids[site.node][activation_bits], site.features)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        rounded = quantize(weight.detach(), grid)
        if kind != "k-means" and calibration.scheme.learned:
            rounded = calibration.rounded(layer.name, weight_bits)
            assert not isinstance(grid, Codebook)
            weight = within_cells(weight.detach(), rounded, grid)
        bias = calibration.bias_under(layer.name, rounded)
        if layer.name in maps:
            gain, bias = maps[layer.name].gain, maps[layer.name].bias
            weight, grid = weight * gain.view((-1,) + (1,) * (weight.dim() - 1)), scaled(grid, gain)
        norm = None
        if live_norms and layer.name in calibration.gains and isinstance(module, nn.Conv2d):
            gain = calibration.gains[layer.name] * (maps[layer.name].gain if layer.name in maps else 1.0)
            norm, weight, grid = unfolded(weight, bias, grid, gain, calibration.moments[layer.name])
            bias = None
        elements = layer.params // grid.scale.numel()
        quantizer = (
            GroupedQuantizer(grid, elements, of_weights)
            if isinstance(grid, GroupedGrid)
            else of_weights(grid, elements)
        )
        return TrainableLayer(module, weight, bias, quantizer, stores[site.node], requantizer, norm)

    # A copy: operations that stay in float are the calibration's own modules, which are not to be trained.
    network = copy.deepcopy(rewire(calibration, make_site, make_layer)).train()
    return network.to(memory_format=torch.channels_last) if fused else network  # type: ignore[call-overload]


def fold_norms(network: nn.Module) -> bool:
    """Folds a network's live batch norms in place: it computes what it did in eval mode. Says whether it had any."""
    live = [each for each in network.modules() if isinstance(each, TrainableLayer) and each.norm is not None]
    for layer in live:
        layer.fold()
    return bool(live)


def reestimate_trained(network: fx.GraphModule, calibration: Calibration) -> None:
    """Estimates the folded batch norms' statistics again, in a network of `trainable_network` that was trained.

    Its layers' outputs get the float network's means and variances on the calibration inputs back.

    Args:
        network: The network, in eval mode; changed in place.
        calibration: What it was made from.
    """
    maps = reestimate(network, calibration.normalised, calibration.moments, calibration.inputs)
    for name, (gain, shift) in maps.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, TrainableLayer)
        layer.rescale(gain, shift)
