"""The network as a graph of torch.fx that computes the same: functional, in one spelling, with batch norms folded."""

import copy
import inspect
import operator
import threading
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import fusion

from quantenv.attention import WindowBias, WindowPartition, WindowReverse, with_plain_attention
from quantenv.errors import UnsupportedLayerError
from quantenv.locks import PREPARING

#: What is called instead of a method that cannot copy; ``view(dtype)`` is another matter.
_COPYING = {"view": "reshape", "view_as": "reshape_as"}
#: Of ``+=`` and the like.
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
#: What computes the same as each of them.
_TWINS = {getattr(operator, f"__i{name}__"): getattr(operator, f"__{name}__") for name in _OPERATORS}


def trace(network: nn.Module) -> fx.GraphModule:
    """Traces a network and folds its batch norms.

    Args:
        network: A network in eval mode; it is not changed.

    Returns:
        A graph module over copies of its modules, in eval mode, with every batch norm that directly follows a
        convolution or linear layer folded into it. Module names are kept; attention is expressed by its projections.

    Raises:
        UnsupportedLayerError: If torch.fx cannot trace the network, or a layer runs more than once.
    """
    graph_module = unfolded(network)
    modules = dict(graph_module.named_modules())
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


def unfolded(network: nn.Module) -> fx.GraphModule:
    """Traces a network without folding its batch norms; otherwise like `trace`."""
    plain = with_plain_attention(network)
    tracer = _Tracer()
    plain = _with_one_input((copy.deepcopy(network) if plain is network else plain).eval())
    try:
        with PREPARING:  # torch.fx puts back what it changed in the order of one trace
            graph_module = fx.GraphModule(plain, tracer.trace(plain), type(network).__name__)
    except Exception as error:  # torch.fx raises whatever the network's Python raises on a proxy
        raise UnsupportedLayerError(
            f"Cannot trace {type(network).__name__} with torch.fx{tracer.where}: {str(error).rstrip('.')}. "
            "Control flow on tensor values must move out of forward(), or into a function that torch.fx.wrap marks, "
            "if it multiplies by no weights."
        ) from error
    modules = dict(graph_module.named_modules())
    _check_used_once(graph_module, modules)
    in_place = {name for name, module in modules.items() if getattr(module, "inplace", False) is True}
    for name in in_place:
        modules[name].inplace = False
    for node in graph_module.graph.nodes:
        _respell(node, modules)
        _make_functional(node, in_place)
    graph_module.recompile()
    return graph_module


def _with_one_input(network: nn.Module) -> nn.Module:
    """Leaves all other parameters of forward() at their defaults: traced, they would be inputs, and never None."""
    if len(inspect.signature(network.forward).parameters) > 1:
        whole = type(network)
        network.__class__ = type(whole.__name__, (whole,), {"forward": lambda self, x: whole.forward(self, x)})
    return network


def _respell(node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Gives modules their arguments and functions their input by position, and lets a view copy where it must.

    Convolutions put out channels-last tensors here, of which ``x.view(len(x), -1)`` is none.
    """
    if node.op == "call_module" and node.kwargs:
        bound = inspect.signature(modules[str(node.target)].forward).bind(*node.args, **node.kwargs)
        node.args, node.kwargs = bound.args, bound.kwargs
    if node.op == "call_function" and not node.args and "input" in node.kwargs:
        others = dict(node.kwargs)
        node.args, node.kwargs = (others.pop("input"),), others
    sizes = (*node.args[1:], *node.kwargs.values())
    if node.op == "call_method" and node.target in _COPYING and not any(isinstance(x, torch.dtype) for x in sizes):
        node.target = _COPYING[node.target]
        node.args, node.kwargs = (node.args[0], *sizes), {}


def _make_functional(node: fx.Node, modules: Set[str]) -> None:
    """Has an operation in place, one of the modules or another, return its result, and all that come later read that.

    A site between an operation and what it changes would cut the two apart; and prefixes are kept and run on from.
    """
    in_place = node.op == "call_module" and node.target in modules
    if node.kwargs.get("inplace") is True:
        in_place, node.kwargs = True, {**node.kwargs, "inplace": False}
    elif (twin := _functional_twin(node)) is not None:
        in_place, node.target = True, twin
    if in_place and isinstance(changed := node.args[0], fx.Node) and not _is_size(changed):
        changed.replace_all_uses_with(node, lambda user: user > node)


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a shape, or a number made of one: whoever adds to a number changes none."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    made = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return made and bool(node.all_input_nodes) and all(map(_is_size, node.all_input_nodes))


def _functional_twin(node: fx.Node) -> Any:
    """Returns what computes the same as a method or function in place, or None if it is none, or there is no such."""
    if node.op == "call_function" and node.target in _TWINS:
        return _TWINS[node.target]
    name = str(getattr(node.target, "__name__", node.target))
    if not name.endswith("_") or name.endswith("__"):
        return None
    if node.op == "call_method":
        return name[:-1] if hasattr(torch.Tensor, name[:-1]) else None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None) if node.op == "call_function" else None


def _check_used_once(graph_module: fx.GraphModule, modules: Mapping[str, nn.Module]) -> None:
    calls = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for name, count in calls.items():
        if count > 1 and isinstance(modules[name], nn.Conv2d | nn.Linear):
            raise UnsupportedLayerError(
                f"Layer {name!r} runs {count} times in one forward pass, but has one range for its input. "
                "Give each use a layer of its own."
            )


class _Proxy(fx.Proxy):
    """Knows ``+=`` and the like from ``+``: others may hold the tensor that the first changes."""


def _recorded(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in _OPERATORS:
    setattr(_Proxy, f"__i{_name}__", _recorded(getattr(operator, f"__i{_name}__")))


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own layers and the windows of attention; knows where it stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.where = ""
        self._thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WindowBias | WindowPartition | WindowReverse) or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:  # torch.fx sees the modules' calls of all threads
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self.where:  # the innermost module is left first
                self.where = f", in module {self.path_of_module(m)!r} ({type(m).__name__})"
            raise
