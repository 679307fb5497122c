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
from torch.utils._pytree import tree_leaves

from quantenv.graph.attention import WindowPartition, WindowReverse
from quantenv.graph.multiplications import MULTIPLICATIONS
from quantenv.graph.ops import BATCH_NORMS, LAYERS

_MOVING_MODULES = (
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.CircularPad2d,
    WindowPartition,
    WindowReverse,
)
#: Functions and methods that move values, or choose some of them.
_MOVING = {
    "flatten",
    "unflatten",
    "reshape",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "chunk",
    "split",
    "unbind",
}
_MOVING |= {"roll", "flip", "movedim", "swapaxes", "narrow", "select", "index_select", "gather", "take_along_dim", "t"}
_MOVING |= {"tile", "amax", "amin", "broadcast_to", "repeat_interleave", "tensor_split", "ravel", "clone"}
#: Those that only methods are called.
_MOVING_METHODS = _MOVING | {"expand", "expand_as", "contiguous", "size", "repeat", "detach", "reshape_as"}
#: Of the functions that choose values those that also tell where they stood: other calls of theirs compare two tensors.
_CHOOSING = {"max", "min", "sort", "topk", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin", "aminmax"}
#: Functions that look at all values to choose some.
_POOLING = {torch.max_pool1d, torch.max_pool2d, F.max_pool1d, F.max_pool2d}
_POOLING |= {F.adaptive_max_pool1d, F.adaptive_max_pool2d, torch.amax, torch.amin}
_MOVING_FUNCTIONS = {
    *_POOLING,
    *(getattr(torch, name) for name in _MOVING if hasattr(torch, name)),
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    F.channel_shuffle,
    operator.getitem,
    getattr,
}
#: Functions of torchvision that are leaves of the trace, by name: importing torchvision takes a second. They pad with
#: zeros and put pixels beside each other, and drop residual branches in training only.
_MOVING_NAMES = {
    "torchvision.models.swin_transformer._patch_merging_pad",
    "torchvision.ops.stochastic_depth.stochastic_depth",
}
#: Functions that make constants of a tensor's size.
_LIKE = {torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like}
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
        graph_module: A network from `quantenv.graph.tracing.trace`.
        example: A batch of inputs, to learn which nodes are float tensors and how large they are.

    Returns:
        The sites in execution order.
    """
    values = Values(graph_module, len(example))
    with torch.no_grad():
        values.run(example)
    modules = dict(graph_module.named_modules())
    in_float = _in_float(graph_module, modules, values.carriers)
    exact = _exact(graph_module, modules, values)
    sites = []
    for node in graph_module.graph.nodes:
        moved = node in values.moving and node.args[0] not in exact  # what moves exact values is the first to be stored
        if node.name not in values.features or moved or node in exact or fused_relu(node, modules) is not None:
            continue
        layers, shared = _readers(node, modules, values)
        shared &= node not in values.constants  # a constant is stored for layers alone
        if (layers or shared) and node not in in_float:
            sites.append(Site(node.name, layers, shared, values.features[node.name]))
    return tuple(sites)


def keep_exact(graph_module: fx.GraphModule, example: torch.Tensor) -> None:
    """Has what reads numbers of the input as they are, such as ids that index, read it beside what is quantized.

    Whatever else reads the same tensor gets a node of its own to be rounded.

    Args:
        graph_module: A network from `quantenv.graph.tracing.trace`, changed in place.
        example: A batch of inputs.
    """
    values = Values(graph_module, len(example))
    with torch.no_grad():
        values.run(example)
    exact = _exact(graph_module, dict(graph_module.named_modules()), values)
    for node in exact:
        rounded = [user for user in node.users if not _leaves_alone(user, exact, values) and user not in values.moving]
        if rounded and node.name in values.features:  # no collection of tensors
            with graph_module.graph.inserting_after(node):
                stored = graph_module.graph.call_method("detach", (node,))
            for user in rounded:
                user.replace_input_with(node, stored)
    graph_module.recompile()


def _exact(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module], values: "Values") -> set[fx.Node]:
    """Returns the nodes that hold the input, or numbers made of it, which something reads that must not be rounded.

    That is what makes whole numbers or truth values of it: ids are cast, compared and looked up.
    """
    exact: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        if node.op == "output" or node not in values.carriers or multiplies(node, modules):
            continue
        users = [user for user in node.users if user not in values.constants]
        if node not in values.constants and any(_leaves_alone(user, exact, values) for user in users):
            exact.add(node)
    # From the input on: what is computed of rounded values is stored rounded, whoever reads it.
    of_input: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        sources = [source for source in node.all_input_nodes if source not in values.constants]
        if node in exact and all(source in of_input for source in sources):
            of_input.add(node)
    return of_input


def _leaves_alone(user: fx.Node, exact: Set[fx.Node], values: "Values") -> bool:
    """Whether a reader takes values as they are: it makes no floats of them, or others do that with what it makes."""
    return user in exact or (user not in values.carriers and user not in values.constants)


def _moves(node: fx.Node, modules: Mapping[str, nn.Module], value: object) -> bool:
    """Whether a node only moves stored values, so that its output, the value, needs no rounding of its own."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _MOVING_MODULES)
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if name in _CHOOSING and isinstance(value, tuple):
        return True
    if node.op == "call_method":
        return node.target in _MOVING_METHODS
    return node.target in _MOVING_FUNCTIONS or _pads(node) or _qualified_name(node) in _MOVING_NAMES


def pools(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node that moves stored values looks at all of them to choose some."""
    if node.op == "call_module":
        return "Pool" in type(modules[str(node.target)]).__name__
    name = str(getattr(node.target, "__name__", node.target))
    return node.target in _POOLING or name in _CHOOSING or name in ("amax", "amin")


def _pads(node: fx.Node) -> bool:
    """Zero is on every grid, so the zero-padded shortcuts of CIFAR ResNets need no rounding of their own.

    Nor does padding with values that are there.
    """
    settings = {**dict(zip(("mode", "value"), node.args[2:], strict=False)), **node.kwargs}
    return node.target is F.pad and (settings.get("mode", "constant") != "constant" or not settings.get("value"))


def _qualified_name(node: fx.Node) -> str:
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"


def is_layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a quantizable layer."""
    return node.op == "call_module" and isinstance(modules[str(node.target)], LAYERS)


def _is_softmax(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Softmax | nn.LogSoftmax)
    return node.target in (_SOFTMAX_FUNCTIONS if node.op == "call_function" else _SOFTMAX_METHODS)


def multiplies(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node sums products of two tensors: a quantizable layer, or a function or method."""
    if node.op == "call_function":
        return node.target in MULTIPLICATIONS or node.target is operator.matmul
    return is_layer(node, modules) or (node.op == "call_method" and node.target in _MULTIPLICATION_METHODS)


def is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a ReLU, in any of the spellings that `quantenv.graph.tracing.trace` leaves."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | nn.ReLU6)
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS or node.target is F.relu6
    return node.op == "call_method" and node.target == "relu"


def fused_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Returns the ReLU that integer hardware fuses into a layer, batch norm or add, or None."""
    fusable = node.target in _ADDS or (node.op == "call_method" and node.target == "add")
    if node.op == "call_module":
        fusable = isinstance(modules[str(node.target)], LAYERS + BATCH_NORMS)
    users = list(node.users)
    return users[0] if fusable and len(users) == 1 and is_relu(users[0], modules) else None


def _in_float(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module], carriers: Set[fx.Node]) -> set[fx.Node]:
    """Nodes that nothing but a softmax reads, directly or through others such, back to the product they start at."""
    found: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        users = [user for user in node.users if user in carriers]
        if users and all(
            _is_softmax(user, modules) or (user in found and not multiplies(user, modules)) for user in users
        ):
            found.add(node)
    return {node for node in found if node.op != "placeholder"}


def _readers(node: fx.Node, modules: Mapping[str, nn.Module], values: "Values") -> tuple[tuple[str, ...], bool]:
    """Layers that read a node's value, directly or through moving nodes, and whether anything else does."""
    layers: list[str] = []
    shared = False
    pending = list(node.users)
    while pending:
        user = pending.pop(0)
        if user not in values.carriers:
            continue  # it reads the shape only
        if is_layer(user, modules):
            layers.append(str(user.target))
        elif user in values.moving:
            pending += list(user.users)
        elif user.op != "output":
            shared = True
    return tuple(dict.fromkeys(layers)), shared


class Values(fx.Interpreter):
    """Runs a graph and remembers which nodes hold floats, of how many elements for one sample, and which move them."""

    def __init__(self, graph_module: fx.GraphModule, batch: int) -> None:
        super().__init__(graph_module)
        self.batch = batch
        self.features: dict[str, int] = {}
        """By nodes with a float tensor."""
        self.carriers: set[fx.Node] = set()
        """Nodes with a float or complex tensor, or a collection of them, and the output."""
        self.moving: set[fx.Node] = set()
        """Nodes that only move stored values."""
        self.modules = dict(graph_module.named_modules())
        """By name."""
        self.constants: set[fx.Node] = set()
        """Nodes that depend on no value of the input: parameters, and what is made of them and of sizes."""

    def run_node(self, n: fx.Node) -> object:
        """Runs a node and looks at what it makes."""
        value = super().run_node(n)
        if n.op == "get_attr" or (n.op != "placeholder" and all(x in self.constants for x in n.all_input_nodes)):
            self.constants.add(n)
        if _tells_of_sizes(n, value):
            self.constants.add(n)
        if n.op == "output" or any(_has_values(x) for x in tree_leaves(value)):
            self.carriers.add(n)
        if _is_float(value) and n.op != "output":
            assert isinstance(value, torch.Tensor)
            self.features[n.name] = max(1, value.numel() // self.batch)
        if _moves(n, self.modules, value) and self._has_stored(n):
            self.moving.add(n)
        return value

    def _has_stored(self, node: fx.Node) -> bool:
        """Whether what a node moves is stored, or moved: nothing that lies in a collection, and no complex numbers."""
        source = node.args[0] if node.args else None
        return not isinstance(source, fx.Node) or source.name in self.features or source in self.moving


def _tells_of_sizes(node: fx.Node, value: object) -> bool:
    """Whether a node tells of a tensor's size, type or place, but not of its values."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "new_zeros", "new_ones", "new_full"):
        return True
    told = node.target is getattr and not any(isinstance(x, torch.Tensor) for x in tree_leaves(value))
    return told or node.target in _LIKE


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _has_values(value: object) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
