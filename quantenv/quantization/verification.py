"""Whether the network that is rewritten for quantization, with rounding left out, computes what the float one does."""

from collections.abc import Collection

import torch
from torch import fx, nn

from quantenv.core.errors import UnsupportedLayerError
from quantenv.core.layers import LayerSpec
from quantenv.graph.naming import name_of
from quantenv.graph.sites import Site
from quantenv.graph.verification import BY_LAYER, FLOAT_TOLERANCE, REWRITTEN_ON, deviation, is_noise, values_of
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.simulated import rewire
from quantenv.quantization.switched import SwitchedLayer, SwitchedSite


def check_rewritten(calibration: Calibration) -> None:
    """Checks that the quantized network, with rounding left out, computes what the folded float network does.

    Raises:
        UnsupportedLayerError: If it does not; the first layer or operation that puts out something else is named.
    """
    inputs = calibration.inputs[:REWRITTEN_ON]
    rewritten, graph = without_rounding(calibration), calibration.graph
    with torch.no_grad():
        difference = deviation(graph(inputs), rewritten(inputs))
        if difference <= FLOAT_TOLERANCE or is_noise(difference, graph, inputs):
            return
        inputs = inputs[:BY_LAYER]
        computed = {node.name: value for node, value in values_of(rewritten, inputs)}
        for node, expected in values_of(graph, inputs):
            value = computed.get(node.name, expected)  # ReLUs whose work a site does are gone
            if deviation(expected, value) > FLOAT_TOLERANCE:
                raise UnsupportedLayerError(
                    f"{name_of(node, graph)} puts out something else once it is rewritten for quantization, before "
                    f"anything is rounded ({deviation(expected, value):.2%} of its size): quantenv would report "
                    "numbers of another network. Express it with plain layers, without hooks."
                )
    raise UnsupportedLayerError(
        f"{graph.__class__.__name__} puts out something else once it is rewritten for quantization, before anything is "
        "rounded: quantenv would report numbers of another network. Express it with plain layers, without hooks."
    )


class _Unrounded(nn.Module):
    """A site that rounds nothing; it still does the work of the ReLU that `rewire` drops in front of it."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.clamped = low >= 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0) if self.clamped else x


def without_rounding(calibration: Calibration, but: Collection[str] = ()) -> fx.GraphModule:
    """Rewrites a network as `QuantizedNetwork` does, with float weights and sites that round nothing.

    Args:
        calibration: What to rewrite; not changed.
        but: Nodes of sites that round to 8 bits all the same.
    """
    sites: dict[str, SwitchedSite] = {}

    def make_site(site: Site) -> nn.Module:
        grids = calibration.site_grids[site.node]
        sites[site.node] = SwitchedSite(grids, [], site.shared)
        return sites[site.node] if site.node in but else _Unrounded(grids[8].low)

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        source = sites[calibration.site_of(layer.name).node]
        nothing, indices = torch.empty(0), calibration.indices[layer.name]
        switched = SwitchedLayer(layer.name, module, {}, indices, source, lambda bits: nothing, lambda weight: None)
        switched.bias = module.bias  # type: ignore[assignment]
        return switched

    return rewire(calibration, make_site, make_layer)
