"""Rewriting a simulated quantized network into one on whole numbers: integer operators where there are, float between.

Operators that have an integer form with a stored tensor behind it: layers, sums of two stored tensors, averages over
windows of equal size and concatenations, with a ReLU or ReLU6 between, which is a clamp. What only moves stored values
moves whole numbers. Everything else computes in float on the values that whole numbers stand for.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.backends.accumulators import Accumulators
from quantenv.backends.integer_layer import IntegerLayer, Moments
from quantenv.backends.integer_operators import (
    Decode,
    Encode,
    IntegerAverage,
    IntegerConcatenation,
    IntegerSum,
    Moved,
    OutputAverage,
    Target,
)
from quantenv.graph.naming import name_of
from quantenv.graph.sites import Values, is_relu
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.storage import Storage
from quantenv.quantization.switched import Switched, SwitchedLayer, SwitchedSite

#: Calls that move what is held, whatever holds it.
_MOVES = {
    operator.getitem,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
}
_MOVE_METHODS = {"flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "detach", "view"}
_MOVE_MODULES = (nn.Flatten, nn.Identity, nn.Dropout)
#: Calls that move values, if zero is held as zero and the order of values kept.
_VALUE_MOVES = {F.pad, torch.max_pool2d, F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool1d, F.max_pool1d}
_VALUE_MOVE_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d)
#: Targets of nodes that add two tensors, by kind of node.
_SUMS = {"call_function": (operator.add, torch.add), "call_method": ("add",)}


@dataclass(frozen=True)
class IntegerProgram:
    """A network on whole numbers."""

    module: fx.GraphModule
    """Its graph, of `Switched` modules and what computes in float."""
    float_operators: tuple[str, ...]
    """What computes in float, by name, in execution order."""


def to_integers(
    calibration: Calibration,
    source: fx.GraphModule,
    storage: Storage,
    accumulators: Callable[[SwitchedLayer], Accumulators],
    moments: Mapping[str, Moments] | None = None,
) -> IntegerProgram:
    """Rewrites the simulated graph of a `QuantizedNetwork` into one on whole numbers.

    Args:
        calibration: What the network was made from.
        source: The graph, of `SwitchedLayer` and `SwitchedSite`; not changed, but its modules are shared.
        storage: How whole numbers are held.
        accumulators: Makes what computes a layer's accumulators.
        moments: Mean and variance of the float network's outputs, (O,), by layer whose batch norm is to be estimated
            again in the program.

    Returns:
        The program.
    """
    return _Rewriting(calibration, source, storage, accumulators, moments or {}).program()


@dataclass
class _Rewriting:
    calibration: Calibration
    source: fx.GraphModule
    storage: Storage
    accumulators: Callable[[SwitchedLayer], Accumulators]
    moments: Mapping[str, Moments]
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)
    held: dict[fx.Node, SwitchedSite] = field(default_factory=dict)
    """Nodes of the new graph that hold whole numbers, and whose."""
    in_float: list[str] = field(default_factory=list)

    def program(self) -> IntegerProgram:
        """Rewrites node by node."""
        self.modules = dict(self.source.named_modules())
        self.result = fx.GraphModule(self.source, self.source.graph)  # with its modules, parameters and buffers
        self.graph = fx.Graph()
        seen = Values(self.calibration.graph, 1)
        with torch.no_grad():
            seen.run(self.calibration.inputs[:1])
        self.moving = {node.name for node in seen.moving}
        self.constant = {node.name for node in seen.constants}
        self.shapes = _shapes(self.calibration)
        self.originals = {node.name: node for node in self.calibration.graph.graph.nodes}
        for node in self.source.graph.nodes:
            if node not in self.values:  # else an operator in front has done its work
                self.values[node] = self._rewritten(node)
        self.graph.lint()
        self.result.graph = self.graph
        self.result.delete_all_unused_submodules()
        return IntegerProgram(self.result, tuple(dict.fromkeys(self.in_float)))

    def _rewritten(self, node: fx.Node) -> fx.Node:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, SwitchedSite):
            return self._stored(self.values[node.args[0]], module)  # type: ignore[index]
        if isinstance(module, SwitchedLayer):
            return self._layer(node, module)
        terms = [self.values[each] for each in node.all_input_nodes]
        sites = [self.held.get(term) for term in terms]
        known = [site for site in sites if site is not None]
        if known and len(known) == len(sites):
            made = self._operator(node, module, terms, known)
            if made is not None:
                return made
        if node.name not in self.constant and node.op not in ("placeholder", "output", "get_attr"):
            free = node.name in self.moving or is_relu(node, self.modules)
            if not free:
                self.in_float.append(name_of(self.originals[node.name], self.calibration.graph))
        return self.graph.node_copy(node, lambda n: self._decoded(self.values[n]))

    def _operator(
        self, node: fx.Node, module: nn.Module | None, terms: list[fx.Node], sites: list[SwitchedSite]
    ) -> fx.Node | None:
        """Returns the integer form of a node that reads stored tensors alone, or None if it has none."""
        if len(terms) == 1 and self._moves(node, module):
            return self._kept(self.graph.node_copy(node, lambda n: self.values[n]), sites[0])
        if len(terms) == 1 and self._moves_values(node, module):
            move = functools.partial(_call, node, module)
            return self._kept(self._insert(Moved(move, sites[0], self.storage), "moved", *terms), sites[0])
        target, through = self._target(node)
        if target is None:
            average = self._average(node, module) if len(terms) == 1 and self._leads_out(node) else None
            if average is None:
                return None
            return self._insert(OutputAverage(*average, sites[0], self.storage), "OutputAverage", *terms)
        new: Switched | None = None
        if _is_sum(node) and len(terms) == len(node.args) == 2:
            new = IntegerSum(sites, target, self.storage)
        elif len(terms) == 1 and (average := self._average(node, module)) is not None:
            new = IntegerAverage(*average, sites[0], target, self.storage)
        elif node.target is torch.cat:
            dimension = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            assert isinstance(dimension, int)
            order = node.args[0]
            if isinstance(order, tuple | list) and len(order) == len(terms):
                new = IntegerConcatenation(dimension, sites, target, self.storage)
        if new is None:
            return None
        made = self._kept(self._insert(new, type(new).__name__, *terms), target.site)
        self.values.update(dict.fromkeys(through, made))
        return made

    def _layer(self, node: fx.Node, layer: SwitchedLayer) -> fx.Node:
        argument = self._stored(self.values[node.args[0]], layer.source)  # type: ignore[index]
        target, through = self._target(node)
        wide = target is None and self._leads_out(node)
        new = IntegerLayer(layer, target, self.storage, self.accumulators(layer), self.moments.get(layer.name), wide)
        made = self._insert(new, str(node.target).replace(".", "_"), argument)
        if target is not None:
            self._kept(made, target.site)
            self.values.update(dict.fromkeys(through, made))
        return made

    def _stored(self, value: fx.Node, site: SwitchedSite) -> fx.Node:
        """Returns a node that holds a value as whole numbers of a site."""
        if self.held.get(value) is site:
            return value
        return self._kept(self._insert(Encode(site, self.storage), "encode", self._decoded(value)), site)

    def _decoded(self, value: fx.Node) -> fx.Node:
        return self._insert(Decode(self.held[value], self.storage), "decode", value) if value in self.held else value

    def _insert(self, module: nn.Module, name: str, *arguments: fx.Node) -> fx.Node:
        name = name if isinstance(module, IntegerLayer) else f"{name}_{len(self.graph.nodes)}"
        self.result.add_submodule(name, module)
        return self.graph.call_module(name, arguments)

    def _kept(self, node: fx.Node, site: SwitchedSite) -> fx.Node:
        self.held[node] = site
        return node

    def _target(self, node: fx.Node) -> tuple[Target | None, list[fx.Node]]:
        """Returns the stored tensor that alone reads a node, if one does, and the nodes of its ReLU and its site."""
        through: list[fx.Node] = []
        positive, most = False, None
        while len(node.users) == 1:
            (node,) = node.users
            through.append(node)
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, SwitchedSite):
                return Target(module, self.storage, positive, most), through
            if not is_relu(node, self.modules):
                break
            positive = True
            most = 6.0 if isinstance(module, nn.ReLU6) or node.target is F.relu6 else most
        return None, []

    def _leads_out(self, node: fx.Node) -> bool:
        """Whether a node's value is the network's output, perhaps moved, and nothing else."""
        return all(user.op == "output" or (user.name in self.moving and self._leads_out(user)) for user in node.users)

    def _moves(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node moves what is held, whatever holds it."""
        if node.op == "call_module":
            return isinstance(module, _MOVE_MODULES) or (self.storage.moves and self._moves_values(node, module))
        known = _MOVES if node.op == "call_function" else _MOVE_METHODS
        return node.target in known or (self.storage.moves and self._moves_values(node, module))

    def _moves_values(self, node: fx.Node, module: nn.Module | None) -> bool:
        if node.name not in self.moving or len(node.all_input_nodes) != 1:
            return False
        return isinstance(module, _VALUE_MOVE_MODULES) if node.op == "call_module" else node.target in _VALUE_MOVES

    def _average(
        self, node: fx.Node, module: nn.Module | None
    ) -> tuple[Callable[[torch.Tensor], torch.Tensor], int] | None:
        """Returns what sums over the windows of an average, and their size; None if it is none, or sizes differ."""
        source = node.all_input_nodes[0]
        while isinstance(self.modules.get(str(source.target)), SwitchedSite):
            source = source.args[0]  # type: ignore[assignment]
        before, after = self.shapes.get(source.name), self.shapes.get(node.name)
        if before is None or after is None:
            return None
        if (dimensions := _averaged_dimensions(node, len(before))) is not None:
            keep = len(after) == len(before)
            count = math.prod(before[dimension] for dimension in dimensions)
            return functools.partial(torch.sum, dim=dimensions, keepdim=keep), count
        if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
            window = tuple(old // new for old, new in zip(before[-2:], after[-2:], strict=True))
            if any(old % new for old, new in zip(before[-2:], after[-2:], strict=True)):
                return None
            sums = functools.partial(F.avg_pool2d, kernel_size=window, stride=window, divisor_override=1)
            if tuple(after[-2:]) == (1, 1):
                sums = functools.partial(torch.sum, dim=(-2, -1), keepdim=True)
            return sums, math.prod(window)
        settings = _pooling(node, module)
        if settings is None or settings["ceil_mode"]:
            return None
        kernel = _pair(settings["kernel_size"])
        divisor = settings.pop("divisor_override") or math.prod(kernel)
        if any(_pair(settings["padding"])) and not settings.pop("count_include_pad"):
            return None
        settings.pop("count_include_pad", None)
        return functools.partial(F.avg_pool2d, **settings, divisor_override=1), int(divisor)


def _pooling(node: fx.Node, module: nn.Module | None) -> dict[str, Any] | None:
    """Returns the settings of an average pool, or None if a node is none."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    if isinstance(module, nn.AvgPool2d):
        return {name: getattr(module, name) for name in names}
    if node.target is not F.avg_pool2d:
        return None
    settings = dict(zip(names, (None, None, 0, False, True, None), strict=True))
    return {**settings, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _averaged_dimensions(node: fx.Node, dimensions: int) -> tuple[int, ...] | None:
    """Returns the dimensions that a mean is over, or None if a node is none over given dimensions."""
    if node.target not in (torch.mean, "mean"):
        return None
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    given = (given,) if isinstance(given, int) else given
    if not isinstance(given, tuple | list) or not all(isinstance(each, int) for each in given):
        return None
    found = tuple(each % dimensions for each in given)
    return found if found and 0 not in found else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _call(node: fx.Node, module: nn.Module | None, value: torch.Tensor) -> torch.Tensor:
    """Calls what a node with one input calls, on another value."""
    (argument,) = node.all_input_nodes
    arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: value if n is argument else n)
    if module is not None:
        found: torch.Tensor = module(*arguments, **keywords)
    else:
        assert callable(node.target)
        found = node.target(*arguments, **keywords)
    return found


def _shapes(calibration: Calibration) -> dict[str, torch.Size]:
    """Returns the shapes of the float network's tensors for one sample, by node."""
    shapes: dict[str, torch.Size] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                shapes[n.name] = value.shape
            return value

    with torch.no_grad():
        Recorder(calibration.graph).run(calibration.inputs[:1])
    return shapes


def _is_sum(node: fx.Node) -> bool:
    """Says whether a node adds two tensors and does nothing else."""
    return node.target in _SUMS.get(node.op, ()) and not node.kwargs
