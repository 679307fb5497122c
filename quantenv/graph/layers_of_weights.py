"""Weights that a network multiplies by in functions, made the weights of layers, which have bits and a cost.

``F.linear(x, F.normalize(self.weight))``, a convolution with standardised weights, or a product with a parameter: what
the weight is made of does not depend on the input, so it is made once. Tables that are no parameters stay as they are.
"""

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.functional import is_size
from quantenv.graph.multiplications import MULTIPLICATIONS
from quantenv.graph.ops import MODULES
from quantenv.graph.products import LayerCall, NotConstantError, as_layer, operands

_METHODS = {"matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "__matmul__", "__rmatmul__"}
#: What draws numbers: what it makes is no constant.
_DRAWING = {torch.rand, torch.randn, torch.bernoulli, F.dropout}
#: Names of the layers that are put into the graph, until all are known.
_NEW = "_new_layer_"


def layers_of_weights(graph_module: fx.GraphModule, network: nn.Module) -> bool:
    """Replaces multiplications by weights outside of layers by layers, in place.

    Args:
        graph_module: A graph of `quantenv.graph.functional`.
        network: What it is of, for messages.

    Returns:
        Whether there were any. A layer is named by the module that owns the weight, if that is nothing else, or by the
        weight itself.

    Raises:
        UnsupportedLayerError: If parameters are multiplied by in a way that no layer of `quantenv.graph.ops` computes.
    """
    constants = _Constants(graph_module)
    made: list[tuple[str, str]] = []
    for node in list(graph_module.graph.nodes):
        weights = [each for each in operands(node) if constants.parameters(each)] if _multiplies(node) else []
        if not weights or node in constants:
            continue
        call = as_layer(node, constants.value) if weights[0] in constants else None
        if call is None:
            raise UnsupportedLayerError(_refusal(node, constants.parameters(weights[0])[0], network))
        name = f"{_NEW}{len(made)}"
        _insert(graph_module, node, name, call)
        made.append((name, constants.parameters(weights[0])[0]))
    if made:
        graph_module.graph.eliminate_dead_code()
        _name(graph_module, made)
    return bool(made)


def _multiplies(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in MULTIPLICATIONS or getattr(node.target, "__name__", "") == "matmul"
    return node.op == "call_method" and node.target in _METHODS


class _Constants:
    """The nodes of a graph that do not depend on the input, what they are, and which parameters they are made of."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._graph_module = graph_module
        self._modules = dict(graph_module.named_modules())
        self._values: dict[fx.Node, Any] = {}
        self._constants: set[fx.Node] = set()
        self._parameters: dict[fx.Node, tuple[str, ...]] = {}  # of nodes that depend on the input's size at most
        for node in graph_module.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr":
                is_parameter = isinstance(_attribute(graph_module, node.target), nn.Parameter)
                self._parameters[node] = (str(node.target),) if is_parameter else ()
                self._constants.add(node)
            elif _is_of_sizes(node):
                self._parameters[node] = ()
            elif inputs and all(each in self._parameters for each in inputs) and self._is_fixed(node):
                names = {name for each in inputs for name in self._parameters[each]}
                self._parameters[node] = tuple(sorted(names, key=self._order))
                if all(each in self._constants for each in inputs):
                    self._constants.add(node)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._constants

    def parameters(self, node: fx.Node) -> tuple[str, ...]:
        """Returns the parameters that a node is made of and nothing else, the largest first."""
        return self._parameters.get(node, ())

    def value(self, node: fx.Node) -> Any:
        """Computes a constant.

        Raises:
            NotConstantError: If the node is none.
        """
        if node not in self:
            raise NotConstantError
        if node not in self._values:
            args, kwargs = fx.node.map_aggregate(
                (node.args, node.kwargs), lambda x: self.value(x) if isinstance(x, fx.Node) else x
            )
            with torch.no_grad():
                self._values[node] = self._run(node, args, kwargs)
        return self._values[node]

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            value = _attribute(self._graph_module, node.target)
            return value.detach() if isinstance(value, torch.Tensor) else value
        if node.op == "call_module":
            return self._modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _is_fixed(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return not isinstance(self._modules[str(node.target)], MODULES)
        return node.target not in _DRAWING and node.op != "output"

    def _order(self, name: str) -> tuple[int, str]:
        return -_attribute(self._graph_module, name).numel(), name


def _is_of_sizes(node: fx.Node) -> bool:
    """Whether a node tells of a tensor's size or type, but not of its values."""
    return is_size(node) or (node.target is getattr and node.args[1] in ("dtype", "device"))


def _attribute(module: nn.Module, path: Any) -> Any:
    return functools.reduce(getattr, str(path).split("."), module)


def _insert(graph_module: fx.GraphModule, node: fx.Node, name: str, call: LayerCall) -> None:
    """Puts a layer in a node's place."""
    graph = graph_module.graph
    graph_module.add_submodule(name, call.layer)
    with graph.inserting_before(node):
        value = call.source
        for method, *arguments in call.before:
            value = graph.call_method(method, (value, *arguments))
        value = graph.call_module(name, (value,))
        for method, *arguments in call.after:
            value = graph.call_method(method, (value, *arguments))
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _name(graph_module: fx.GraphModule, made: list[tuple[str, str]]) -> None:
    """Gives new layers, (present name, parameter) each, names that nothing else has."""
    used = {str(node.target) for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")}
    names: dict[str, str] = {}
    for present, parameter in made:
        owner = parameter.rpartition(".")[0]
        numbered = (f"{owner or parameter}_{count}" for count in itertools.count(2))
        names[present] = next(
            name for name in itertools.chain([owner] if owner else [], [parameter], numbered) if _is_free(name, used)
        )
        used.add(names[present])
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target in names:
            layer = graph_module.get_submodule(str(node.target))
            graph_module.delete_submodule(str(node.target))
            node.target = names[str(node.target)]
            parent, _, last = node.target.rpartition(".")
            holder = graph_module.get_submodule(parent)
            if last in holder._parameters:
                delattr(holder, last)  # the weight as it was
            holder.add_module(last, layer)


def _is_free(name: str, used: set[str]) -> bool:
    return not any(name == each or name.startswith(f"{each}.") or each.startswith(f"{name}.") for each in used)


def _refusal(node: fx.Node, parameter: str, network: nn.Module) -> str:
    owner = parameter.rpartition(".")[0]
    layer = network.get_submodule(owner)
    kind, function = type(layer).__name__, str(getattr(node.target, "__name__", node.target))
    if isinstance(layer, MODULES):
        return (
            f"The weight of layer {owner!r} ({kind}) is used a second time, in {function}, which no nn.Linear or "
            "convolution computes: tied weights are handled where each use is one of those. Express that use by one, "
            "or leave it out."
        )
    return (
        f"A weight of {owner or 'the network itself'!r} ({kind}) is multiplied by in {function}, outside of a layer, "
        "where it cannot be quantized. Make it the weight of an nn.Linear or nn.Conv2d and call that."
    )
