"""The places of a network's graph where integer hardware quantizes.

A *site* is a tensor that integer hardware stores: the network's input, every convolution and linear output (after the
ReLU that follows it), every residual add, every average pool and every float operation's output. Max pools, reshapes,
zero padding and dropout only move stored values, and the network's outputs leave as dequantized accumulators: they are
no sites. Neither is what lies between a product and the softmax that reads it, such as attention scores: a softmax is
computed in float from the accumulators. Other floats, normalisations among them, read stored values and store theirs.
"""

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.attention import WindowPartition, WindowReverse
from quantenv.errors import UnsupportedLayerError
from quantenv.multiplications import MULTIPLICATIONS

_MOVING_MODULES = (
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    WindowPartition,
    WindowReverse,
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
    torch.roll,
    torch.unbind,
    operator.getitem,
    getattr,
}
#: Functions of torchvision that are leaves of the trace, by name: importing torchvision takes a second. They pad with
#: zeros and put pixels beside each other, and drop residual branches in training only.
_MOVING_NAMES = {
    "torchvision.models.swin_transformer._patch_merging_pad",
    "torchvision.ops.stochastic_depth.stochastic_depth",
}
_MOVING_METHODS = {"flatten", "unflatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "expand"}
_MOVING_METHODS |= {"contiguous", "chunk", "split", "unbind", "size"}
_SOFTMAX_FUNCTIONS = {torch.softmax, F.softmax, torch.log_softmax, F.log_softmax}
_SOFTMAX_METHODS = {"softmax", "log_softmax"}
_MULTIPLICATION_METHODS = {"matmul", "mm", "bmm", "addmm", "baddbmm"}
_RELU_FUNCTIONS = {torch.relu, F.relu}
_ADDS = {operator.add, torch.add}


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


def find_sites(graph_module: fx.GraphModule, example: torch.Tensor) -> tuple[Site, ...]:
    """Finds the tensors that are quantized.

    Args:
        graph_module: A network from `quantenv.quantize.tracing.trace`.
        example: A batch of inputs, to learn which nodes are float tensors and how large they are.

    Returns:
        The sites in execution order.

    Raises:
        UnsupportedLayerError: If a layer reads a constant.
    """
    shapes = _FloatShapes(graph_module, len(example))
    with torch.no_grad():
        shapes.run(example)
    modules = dict(graph_module.named_modules())
    in_float = _in_float(graph_module, modules, shapes.carriers)
    sites = []
    for node in graph_module.graph.nodes:
        if node.name not in shapes.features or moves(node, modules) or fused_relu(node, modules) is not None:
            continue
        layers, shared = _readers(node, modules, shapes.carriers)
        if (layers or shared) and node not in in_float:
            sites.append(Site(node.name, layers, shared, shapes.features[node.name]))
    read = {layer for site in sites for layer in site.layers}
    for node in graph_module.graph.nodes:
        if _is_layer(node, modules) and str(node.target) not in read:
            raise UnsupportedLayerError(
                f"Layer {str(node.target)!r} reads nothing that depends on the network's input. "
                "Replace it by its output, a constant."
            )
    return tuple(sites)


def moves(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node only moves stored values, so that its output needs no rounding of its own."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _MOVING_MODULES)
    if node.op == "call_function":
        return node.target in _MOVING_FUNCTIONS or _pads_with_zeros(node) or _qualified_name(node) in _MOVING_NAMES
    return node.op == "call_method" and node.target in _MOVING_METHODS


def _pads_with_zeros(node: fx.Node) -> bool:
    """Zero is on every grid, so the zero-padded shortcuts of CIFAR ResNets need no rounding of their own."""
    settings = {**dict(zip(("mode", "value"), node.args[2:], strict=False)), **node.kwargs}
    return node.target is F.pad and settings.get("mode", "constant") == "constant" and not settings.get("value")


def _qualified_name(node: fx.Node) -> str:
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"


def _is_layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear)


def _is_softmax(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Softmax | nn.LogSoftmax)
    return node.target in (_SOFTMAX_FUNCTIONS if node.op == "call_function" else _SOFTMAX_METHODS)


def _multiplies(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_function":
        return node.target in MULTIPLICATIONS or node.target is operator.matmul
    return _is_layer(node, modules) or (node.op == "call_method" and node.target in _MULTIPLICATION_METHODS)


def is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a ReLU, in any of the spellings that `quantenv.quantize.tracing.trace` leaves."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | nn.ReLU6)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS or node.target is F.relu6
    return node.op == "call_method" and node.target == "relu"


def fused_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Returns the ReLU that integer hardware fuses into a layer, batch norm or add, or None."""
    fusable = node.target in _ADDS or (node.op == "call_method" and node.target == "add")
    if node.op == "call_module":
        fusable = isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d)
    users = list(node.users)
    return users[0] if fusable and len(users) == 1 and is_relu(users[0], modules) else None


def _in_float(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module], carriers: Set[fx.Node]) -> set[fx.Node]:
    """Nodes that nothing but a softmax reads, directly or through others such, back to the product they start at."""
    found: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        users = [user for user in node.users if user in carriers]
        if users and all(
            _is_softmax(user, modules) or (user in found and not _multiplies(user, modules)) for user in users
        ):
            found.add(node)
    return {node for node in found if node.op != "placeholder"}


def _readers(node: fx.Node, modules: Mapping[str, nn.Module], carriers: Set[fx.Node]) -> tuple[tuple[str, ...], bool]:
    """Layers that read a node's value, directly or through moving nodes, and whether anything else does."""
    layers: list[str] = []
    shared = False
    pending = list(node.users)
    while pending:
        user = pending.pop(0)
        if user not in carriers:
            continue  # it reads the shape only
        if _is_layer(user, modules):
            layers.append(str(user.target))
        elif moves(user, modules):
            pending += list(user.users)
        elif user.op != "output":
            shared = True
    return tuple(dict.fromkeys(layers)), shared


class _FloatShapes(fx.Interpreter):
    """Runs a graph and remembers which nodes hold float tensors, and of how many elements for one sample."""

    def __init__(self, graph_module: fx.GraphModule, batch: int) -> None:
        super().__init__(graph_module)
        self.batch = batch
        self.features: dict[str, int] = {}
        self.carriers: set[fx.Node] = set()
        """Nodes with a float tensor, or a tuple or list of them, and the output."""
        self._constants: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op == "get_attr" or (n.op != "placeholder" and all(x in self._constants for x in n.all_input_nodes)):
            self._constants.add(n)
        if n.op == "output" or any(_is_float(x) for x in (value if isinstance(value, tuple | list) else (value,))):
            self.carriers.add(n)
        if _is_float(value) and n.op != "output" and n not in self._constants:
            assert isinstance(value, torch.Tensor)
            self.features[n.name] = value.numel() // self.batch
        return value


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
