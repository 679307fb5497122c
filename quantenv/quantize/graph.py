"""The network as a graph: batch norms folded, and the places found where integer hardware quantizes.

A *site* is a tensor that integer hardware stores: the network's input, every convolution and linear output (after the
ReLU that follows it), every residual add, every average pool and every float operation's output. Max pools, reshapes,
zero padding and dropout only move stored values, and the network's outputs leave as dequantized accumulators: they are
no sites.
"""

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import fusion

from quantenv.errors import UnsupportedLayerError

_MOVING_MODULES = (
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
)
_MOVING_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.max_pool2d,
    F.max_pool2d,
    F.adaptive_max_pool2d,
    F.dropout,
    F.dropout2d,
    operator.getitem,
    getattr,
}
_MOVING_METHODS = {"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze"}
_MOVING_METHODS |= {"contiguous", "chunk", "split", "size"}
_RELU_FUNCTIONS = {torch.relu, F.relu, torch.relu_}
_ADDS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Site:
    """One stored tensor of the graph."""

    node: str
    """Name of the graph node whose output is stored."""
    layers: tuple[str, ...]
    """Quantizable layers that read it: each at its own activation bits."""
    shared: bool
    """Whether something else reads it too (an add, a pool, a float operation), which wants all 8 bits."""
    features: int
    """Elements for one sample."""


def trace(network: nn.Module) -> fx.GraphModule:
    """Traces a network and folds its batch norms.

    Args:
        network: A network in eval mode; it is not changed.

    Returns:
        A graph module over copies of its modules, in eval mode, with every batch norm that directly follows a
        convolution or linear layer folded into it. Module names are kept.

    Raises:
        UnsupportedLayerError: If torch.fx cannot trace the network, or a layer runs more than once.
    """
    try:
        graph_module = fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception as error:  # torch.fx raises whatever the network's Python raises on a proxy
        raise UnsupportedLayerError(
            f"Cannot trace {type(network).__name__} with torch.fx: {error} "
            "Control flow on tensor values must move out of forward()."
        ) from error
    modules = dict(graph_module.named_modules())
    _check_used_once(graph_module, modules)
    for node in list(graph_module.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        source = node.args[0]
        layer = modules.get(source.target) if source.op == "call_module" else None
        if len(source.users) != 1 or not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        folded: nn.Module = (
            fusion.fuse_conv_bn_eval(layer, norm)
            if isinstance(layer, nn.Conv2d)
            else fusion.fuse_linear_bn_eval(layer, norm)
        )
        graph_module.set_submodule(source.target, folded)
        modules[source.target] = folded
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def find_sites(graph_module: fx.GraphModule, example: torch.Tensor) -> tuple[Site, ...]:
    """Finds the tensors that are quantized.

    Args:
        graph_module: A network from `trace`.
        example: A batch of inputs, to learn which nodes are float tensors and how large they are.

    Returns:
        The sites in execution order.
    """
    shapes = _FloatShapes(graph_module)
    with torch.no_grad():
        shapes.run(example)
    modules = dict(graph_module.named_modules())
    sites = []
    for node in graph_module.graph.nodes:
        if node.name not in shapes.features or moves(node, modules) or fused_relu(node, modules) is not None:
            continue
        layers, shared = _readers(node, modules)
        if layers or shared:
            sites.append(Site(node.name, layers, shared, shapes.features[node.name]))
    return tuple(sites)


def moves(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node only moves stored values, so that its output needs no rounding of its own."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _MOVING_MODULES)
    if node.op == "call_function":
        return node.target in _MOVING_FUNCTIONS or _pads_with_zeros(node)
    return node.op == "call_method" and node.target in _MOVING_METHODS


def _pads_with_zeros(node: fx.Node) -> bool:
    """Zero is on every grid, so the zero-padded shortcuts of CIFAR ResNets need no rounding of their own."""
    settings = {**dict(zip(("mode", "value"), node.args[2:], strict=False)), **node.kwargs}
    return node.target is F.pad and settings.get("mode", "constant") == "constant" and not settings.get("value")


def is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a ReLU, in any of its spellings."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | nn.ReLU6)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS or node.target is F.relu6
    return node.op == "call_method" and node.target in ("relu", "relu_")


def fused_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Returns the ReLU that integer hardware fuses into a layer, batch norm or add, or None."""
    fusable = node.target in _ADDS or (node.op == "call_method" and node.target in ("add", "add_"))
    if node.op == "call_module":
        fusable = isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d)
    users = list(node.users)
    return users[0] if fusable and len(users) == 1 and is_relu(users[0], modules) else None


def _check_used_once(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
    calls = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for name, count in calls.items():
        if count > 1 and isinstance(modules[name], nn.Conv2d | nn.Linear):
            raise UnsupportedLayerError(
                f"Layer {name!r} runs {count} times in one forward pass, but has one range for its input. "
                "Give each use a layer of its own."
            )


def _readers(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[tuple[str, ...], bool]:
    """Layers that read a node's value, directly or through moving nodes, and whether anything else does."""
    layers: list[str] = []
    shared = False
    pending = list(node.users)
    while pending:
        user = pending.pop(0)
        if user.op == "call_module" and isinstance(modules[str(user.target)], nn.Conv2d | nn.Linear):
            layers.append(str(user.target))
        elif moves(user, modules):
            pending += list(user.users)
        elif user.op != "output":
            shared = True
    return tuple(dict.fromkeys(layers)), shared


class _FloatShapes(fx.Interpreter):
    """Runs a graph and remembers, for each node with a float tensor, its elements for one sample."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.features: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and n.op not in ("output", "get_attr"):
            self.features[n.name] = value.numel() // max(1, value.shape[0])
        return value
