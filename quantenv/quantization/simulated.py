"""The network with quantizers on every site, computed in float."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.core.layers import LayerSpec
from quantenv.graph.sites import Site
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.switched import SwitchedLayer, SwitchedSite


def rewire(
    calibration: Calibration,
    make_site: Callable[[Site], nn.Module],
    make_layer: Callable[[LayerSpec, nn.Module], nn.Module],
) -> fx.GraphModule:
    """Puts quantizers on every site and replaces every quantizable layer.

    A ReLU in front of a site whose grids have no negative values is dropped: clamping does its work.

    Args:
        calibration: What to rewire; not changed.
        make_site: Makes the quantizer module of a site.
        make_layer: Makes the replacement of a layer from its description, as a whole, and its folded float module.

    Returns:
        A new graph module.
    """
    graph_module = fx.GraphModule(calibration.graph, calibration.graph.graph)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(calibration.graph.graph, copied)
    graph.output(output)
    nodes = {old.name: new for old, new in copied.items()}
    for index, site in enumerate(calibration.sites):
        node = nodes[site.node]
        name = f"site_{index}"
        graph_module.add_submodule(name, make_site(site))
        with graph.inserting_after(node):
            stored = graph.call_module(name)
        node.replace_all_uses_with(stored)
        stored.args = (node,)
        source = node.args[0] if node.args else None
        if _is_plain_relu(graph_module, node) and isinstance(source, fx.Node) and len(source.users) == 1:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    for layer in calibration.modules:
        graph_module.set_submodule(layer.name, make_layer(layer, graph_module.get_submodule(layer.name)))
    graph_module.graph = graph
    graph_module.delete_all_unused_submodules()
    return graph_module


def simulated(calibration: Calibration) -> fx.GraphModule:
    """Returns a network in float, of `SwitchedLayer` and `SwitchedSite`."""
    indices = calibration.indices
    sites: dict[str, SwitchedSite] = {}

    def make_site(site: Site) -> nn.Module:
        readers = [indices[name][0] for name in site.layers]
        sites[site.node] = SwitchedSite(calibration.site_grids[site.node], readers, site.shared)
        return sites[site.node]

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        source = sites[calibration.site_of(layer.name).node]
        round_weights = functools.partial(calibration.rounded, layer.name)
        make_bias = functools.partial(calibration.bias, layer.name)
        grids, channels = calibration.weight_grids[layer.name], calibration.channels[layer.name]
        return SwitchedLayer(layer.name, module, grids, indices[layer.name], source, round_weights, make_bias, channels)

    return rewire(calibration, make_site, make_layer)


def _is_plain_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, F.relu, "relu")
