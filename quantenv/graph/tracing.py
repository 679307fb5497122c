"""The network as a graph of torch.fx that computes the same: functional, in one spelling, with batch norms folded."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import fusion

from quantenv.graph.expressed import expressed
from quantenv.graph.functional import functional_graph
from quantenv.graph.layers import check_used_once
from quantenv.graph.ops import BATCH_NORMS, LAYERS, MODULES, Canonical, geometry_of, op_of


def trace(network: nn.Module) -> fx.GraphModule:
    """Traces a network and folds its batch norms.

    Args:
        network: A network; it is not changed.

    Returns:
        A graph module over copies of its modules, in eval mode, with every batch norm that directly follows a
        convolution folded into it. Module names are kept; attention is expressed by its projections, and so on (see
        `quantenv.graph.expressed`). No two layers share a weight, and padding is with zeros and by numbers: other
        padding is a step of its own.

    Raises:
        UnsupportedLayerError: If torch.fx cannot trace the network, or a layer runs more than once.
    """
    graph_module = functional_graph(expressed(network))
    modules = dict(graph_module.named_modules())
    _check_used_once(graph_module, modules)
    _set_aside(graph_module, modules)
    _pad_openly(graph_module, modules)
    for name, module in modules.items():
        if isinstance(module, MODULES) and op_of(module).transposed:
            graph_module.set_submodule(name, Canonical(module).eval())
    for node, layer, norm in _normalised(graph_module, spatial=True):
        _replace(graph_module, node, fusion.fuse_conv_bn_eval(layer, norm))
    layers = [module for module in graph_module.modules() if isinstance(module, LAYERS)]
    for layer in layers:  # what rescales one layer must not rescale another
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def fold_linear_norms(graph_module: fx.GraphModule, example: torch.Tensor) -> None:
    """Folds batch norms that directly follow a Linear layer into it, in place, where they normalise its features.

    Of an output (B, tokens, features) a batch norm normalises every token, which no weights of a layer can do.

    Args:
        graph_module: A graph of `trace`.
        example: Inputs, float32 (B, ...).
    """
    pairs = _normalised(graph_module, spatial=False)
    shapes = shapes_of(graph_module, example) if pairs else {}
    for node, layer, norm in pairs:
        if len(shapes[node]) == 2:
            _replace(graph_module, node, fusion.fuse_linear_bn_eval(layer, norm))
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _normalised(graph_module: fx.GraphModule, spatial: bool) -> list[tuple[fx.Node, Any, Any]]:
    """Finds the batch norms that alone read a layer with spatial dimensions, or without: nodes, layers and norms."""
    modules = dict(graph_module.named_modules())
    found = []
    for node in graph_module.graph.nodes:
        norm = modules[node.target] if node.op == "call_module" else None
        if not isinstance(norm, BATCH_NORMS):
            continue
        source = node.args[0]
        layer = modules[source.target] if source.op == "call_module" else None
        if len(source.users) != 1 or not isinstance(layer, LAYERS):
            continue
        if isinstance(norm, op_of(layer).norm) and bool(op_of(layer).dims) == spatial:
            found.append((node, layer, norm))
    return found


def _replace(graph_module: fx.GraphModule, norm: fx.Node, folded: nn.Module) -> None:
    """Puts a layer with its norm folded in in the place of both."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    graph_module.set_submodule(str(source.target), folded)
    norm.replace_all_uses_with(source)
    graph_module.graph.erase_node(norm)


def shapes_of(graph_module: fx.GraphModule, example: torch.Tensor) -> dict[fx.Node, torch.Size]:
    """Runs a graph and returns the shapes of its tensors, by node.

    Args:
        graph_module: A graph of `trace`.
        example: Inputs, float32 (B, ...).
    """
    found: dict[fx.Node, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                found[n] = value.shape
            return value

    with torch.no_grad():
        Shapes(graph_module).run(example)
    return found


def _pad_openly(graph_module: fx.GraphModule, modules: Mapping[str, Any]) -> None:
    """Has convolutions pad with zeros, by as much on both sides; what else they do to the border is done in front."""
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], MODULES):
            continue
        layer: Any = modules[node.target]
        if not op_of(layer).dims:
            continue
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            geometry = geometry_of(layer)
            layer.stride, layer.padding, layer.dilation = geometry.stride, geometry.padding, geometry.dilation
            continue
        if layer.padding_mode != "zeros":
            width = list(layer._reversed_padding_repeated_twice)  # left, right, top, bottom
        elif layer.padding == "same":
            width = [
                side
                for size, step in zip(reversed(layer.kernel_size), reversed(layer.dilation), strict=True)
                for side in (step * (size - 1) // 2, (step * (size - 1) + 1) // 2)
            ]
        else:
            width = [0] * 2 * len(layer.kernel_size)
        if layer.padding_mode == "zeros" and width[0::2] == width[1::2]:
            layer.padding = tuple(reversed(width[0::2]))
            continue
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        layer.padding, layer.padding_mode = (0,) * len(layer.kernel_size), "zeros"
        with graph_module.graph.inserting_before(node):
            padded = graph_module.graph.call_function(F.pad, (node.args[0], width, mode))
        node.args = (padded, *node.args[1:])


def _set_aside(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
    """Copies parameters of layers that something else reads, too: the layer's own will be folded and rounded."""
    for node in graph_module.graph.nodes:
        owner, _, parameter = str(node.target).rpartition(".")
        if node.op == "get_attr" and isinstance(modules.get(owner), MODULES):
            value = getattr(modules[owner], parameter)
            node.target = f"{owner}.{parameter}".replace(".", "_") + "_read"
            graph_module.register_parameter(node.target, nn.Parameter(value.detach().clone()))


def _check_used_once(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
    calls = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for name, count in calls.items():
        if isinstance(modules[name], MODULES):
            check_used_once(name, count)
