"""A network's graph in one spelling: functions that change nothing, arguments by position."""

import inspect
import operator
from collections.abc import Mapping, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.core.copies import copy_of
from quantenv.core.errors import UnsupportedLayerError
from quantenv.core.locks import PREPARING
from quantenv.graph.tracer import OPERATORS, Tracer

#: What is called instead of a method that cannot copy; ``view(dtype)`` is another matter.
_COPYING = {"view": "reshape", "view_as": "reshape_as"}
#: What computes the same as each operation in place.
_TWINS = {getattr(operator, f"__i{name}__"): getattr(operator, f"__{name}__") for name in OPERATORS}
#: Where the graph module says which hooks are not in its graph.
UNTRACED = "untraced_hooks"
#: Where it says whether sizes of the example decided what is in it.
DECIDED = "decided"


def functional_graph(network: nn.Module, example: torch.Tensor | None = None) -> fx.GraphModule:
    """Traces a network and spells its graph in one way.

    Args:
        network: A network; it is not changed.
        example: Inputs, (B, ...) with B > 1, by whose sizes, but the batch's, its Python may branch and loop; none if
            it may not.

    Returns:
        A graph module over copies of its modules, in eval mode, in which nothing is changed in place. Module names are
        kept. Its ``meta["decided"]`` says whether Python did so, and ``meta["untraced_hooks"]`` why hooks cannot be
        followed: they look at values.

    Raises:
        UnsupportedLayerError: If torch.fx cannot trace the network.
    """
    copied, tracer = copy_of(network).eval(), Tracer(network, example)
    try:
        with PREPARING:  # torch.fx puts back what it changed in the order of one trace
            graph_module = fx.GraphModule(copied, tracer.trace_network(copied), type(network).__name__)
    except Exception as error:  # torch.fx raises whatever the network's Python raises on a proxy
        raise UnsupportedLayerError(
            f"Cannot trace {type(network).__name__} with torch.fx{tracer.where}: {str(error).rstrip('.')}. "
            "Control flow on tensor values must move out of forward(), or into a function that torch.fx.wrap marks, "
            "if it multiplies by no weights."
        ) from error
    modules = dict(graph_module.named_modules())
    in_place = {name for name, module in modules.items() if getattr(module, "inplace", False) is True}
    for name in in_place:
        modules[name].inplace = False
    for node in graph_module.graph.nodes:
        _respell(node, modules)
        _make_functional(node, in_place)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    graph_module.meta[DECIDED] = tracer.decided
    graph_module.meta[UNTRACED] = tracer.untraced_hooks
    return graph_module


def with_item(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Returns a copy of a tensor in which what is at an index is another value: ``x[index] = value``."""
    x = x.clone()
    x[index] = value
    return x


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
    if in_place and isinstance(changed := node.args[0], fx.Node) and not is_size(changed):
        changed.replace_all_uses_with(node, lambda user: user > node)


def is_size(node: fx.Node) -> bool:
    """Whether a node is a shape, or a number made of one: whoever adds to a number changes none."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    made = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return made and bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))


def _functional_twin(node: fx.Node) -> Any:
    """Returns what computes the same as a method or function in place, or None if it is none, or there is no such."""
    if node.op == "call_function" and node.target is operator.setitem:
        return with_item
    if node.op == "call_function" and node.target in _TWINS:
        return _TWINS[node.target]
    name = str(getattr(node.target, "__name__", node.target))
    if not name.endswith("_") or name.endswith("__"):
        return None
    if node.op == "call_method":
        return name[:-1] if hasattr(torch.Tensor, name[:-1]) else None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None) if node.op == "call_function" else None
