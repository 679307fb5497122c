"""torch.fx's tracer, which also follows hooks, instances with a forward of their own, and tensors made of sizes."""

import functools
import operator
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace

from quantenv.graph.attention import WindowBias, WindowPartition, WindowReverse
from quantenv.graph.ops import MODULES

#: Of ``+=`` and the like.
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
#: Functions that make tensors of sizes, which torch.fx does not record.
_MAKING = ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn")


class _Proxy(fx.Proxy):
    """Knows ``+=`` and the like from ``+``: others may hold the tensor that the first changes."""

    def __len__(self) -> int:
        length = self.tracer.length(self) if isinstance(self.tracer, Tracer) else None
        if length is None:
            raise TypeError("the length of a tensor is not known while it is traced")
        return length

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _recorded(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in OPERATORS:
    setattr(_Proxy, f"__i{_name}__", _recorded(getattr(operator, f"__i{_name}__")))


class Tracer(fx.Tracer):
    """Traces into everything but torch's own layers and the windows of attention; knows where it stopped.

    A layer of torch is one step of the graph only if its instance computes what its class does: one with another
    forward, or whose weight is no parameter but made by something else, is traced into.
    """

    def __init__(self, original: nn.Module, example: torch.Tensor | None = None) -> None:
        """Makes a tracer.

        Args:
            original: What will be traced is a copy of this; functions may hold modules of it.
            example: Inputs, (B, ...) with B > 1, by whose sizes Python may branch and loop; none if it may not.
        """
        super().__init__()
        self.traced_func_name = "_with_hooks"
        self._original = {id(parameter): name for name, parameter in original.named_parameters()}
        self._copied: dict[str, nn.Parameter] = {}
        self.where = ""
        self._thread: int | None = threading.get_ident()
        self._example = example
        self.decided = False
        """Whether Python branched or looped by sizes, which this graph holds for."""
        self.untraced_hooks: dict[str, str] = {}
        """Hooks that could not be followed, and why."""

    def trace_network(self, network: nn.Module) -> fx.Graph:
        """Traces a network in eval mode, with its hooks; the network is changed.

        Its hooks are taken off: what they compute is in the graph.
        """
        self._copied = dict(network.named_parameters())
        for module in network.modules():
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in hooks.items():
                    hooks[key] = self._guarded(hook, network, module)
        _give_one_input(network, self.traced_func_name)
        with _recorded_sizes(), _recorded_lengths(network), _marked_where_used(network):
            graph = self.trace(network)
        for module in network.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        graph._tracer_cls = fx.Tracer  # other processes trace the module's code again, which has no hooks
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Makes what stands for a node's value."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step of the graph."""
        if isinstance(m, WindowBias | WindowPartition | WindowReverse):
            return True
        if vars(m).keys() & {"forward", "_conv_forward"}:
            return False
        if isinstance(m, MODULES) and "weight" not in m._parameters:
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes a step of a module, between its hooks, or follows it."""
        if threading.get_ident() != self._thread:  # torch.fx sees the modules' calls of all threads
            return forward(*args, **kwargs)
        try:
            try:
                path = self.path_of_module(m)
            except NameError:  # made in passing, as a slice of a Sequential is
                return forward(*args, **kwargs)
            if not (m._forward_hooks or m._forward_pre_hooks) or not self.is_leaf_module(m, path):
                return super().call_module(m, forward, args, kwargs)
            with _instead(m, lambda *args, **kwargs: self.create_proxy("call_module", path, args, kwargs)):
                return forward(*args, **kwargs)
        except Exception:
            name = self.submodule_paths.get(m) if self.submodule_paths else None
            if name is not None and not self.where:  # the innermost module is left first
                self.where = f", in module {name!r} ({type(m).__name__})"
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Makes a step of a parameter; of the original network's, it is the copy's."""
        if threading.get_ident() != self._thread:
            return attr_val
        if isinstance(attr_val, nn.Parameter) and (name := self._original.get(id(attr_val))) is not None:
            attr_val = self._copied[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: fx.Proxy) -> Any:
        """Takes a shape, or another collection of a length that does not depend on the batch, apart."""
        length = self.length(obj)
        if length is None:
            return super().iter(obj)
        return iter([self.create_proxy("call_function", operator.getitem, (obj, index), {}) for index in range(length)])

    def length(self, obj: fx.Proxy) -> int | None:
        """Returns the length of a shape or another collection, or None if there is none or it depends on the batch."""
        lengths = {len(value) if isinstance(value, tuple | list) else -1 for value in self._values(obj)}
        if len(lengths) != 1 or -1 in lengths:
            return None
        self.decided = True
        return lengths.pop()

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decides what sizes decide, other than the batch's."""
        answers = {value if isinstance(value, bool) else None for value in self._values(obj)}
        if len(answers) != 1 or None in answers:
            return super().to_bool(obj)
        self.decided = True
        return bool(answers.pop())

    def _values(self, obj: fx.Proxy) -> list[Any]:
        """Computes what a step is for the example and for its first sample; none without an example."""
        if self._example is None:
            return []
        node = obj.node  # of an attribute, it is made now
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copied)
        graph.output(copied[node])
        thread, self._thread = self._thread, None  # modules are run now, not traced
        try:
            with torch.no_grad():
                run = fx.Interpreter(fx.GraphModule(self.root, graph)).run
                return [run(part.clone()) for part in (self._example, self._example[:1])]
        finally:
            self._thread = thread

    def _guarded(self, hook: Callable[..., Any], network: nn.Module, module: nn.Module) -> Callable[..., Any]:
        """Returns a hook that leaves the graph as it was if it cannot be traced, as one that prints values."""
        name = next(name for name, each in network.named_modules() if each is module)

        @functools.wraps(hook)
        def guarded(*arguments: Any) -> Any:
            last = next(iter(reversed(self.graph.nodes)))
            try:
                return hook(*arguments)
            except Exception as error:  # whatever its Python raises on a proxy; `plain_network` judges
                for node in reversed(self.graph.nodes):
                    if node is last:
                        break
                    self.graph.erase_node(node)
                reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
                self.untraced_hooks[hook_name(hook, module, name)] = reason
                return None

        return guarded


def hook_name(hook: Callable[..., Any], module: nn.Module, name: str) -> str:
    """Returns what a module's hook is called, for messages."""
    of = f"{type(module).__name__} {name!r}" if name else "the network itself"
    return f"The hook {getattr(hook, '__qualname__', type(hook).__name__)} of {of}"


@contextmanager
def _instead(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Has a module call a function between its hooks, in place of its forward."""
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]


def _give_one_input(network: nn.Module, name: str) -> None:
    """Gives a network a method that takes the input alone and runs forward() with the network's own hooks around it.

    All other parameters of forward() stay at their defaults: traced, they would be inputs, and never None.
    """
    whole, run = type(network), nn.Module._call_impl

    def method(self: nn.Module, x: Any) -> Any:
        return run(self, x)

    # torch.fx looks for math's functions among the globals of what it traces.
    function = types.FunctionType(method.__code__, _globals_of(network), name, None, method.__closure__)
    network.__class__ = type(whole.__name__, (whole,), {name: function, "__module__": whole.__module__})


def _globals_of(module: nn.Module) -> dict[str, Any]:
    forward = module.forward
    found: dict[str, Any] = getattr(getattr(forward, "__func__", forward), "__globals__", {})
    return found


@contextmanager
def _marked_where_used(network: nn.Module) -> Iterator[None]:
    """Has torch.fx look for functions that `fx.wrap` marked only in modules, and in code of this network's graphs.

    Code that it generates of a graph marks its functions again, every time, and is never forgotten: after thousands of
    graphs most of a trace's time would go into all their code.
    """
    marked: dict[tuple[int, str], dict[str, Any]] = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    used = {id(_globals_of(module)) for module in network.modules()}
    others = {key: names for key, names in marked.items() if "__name__" not in names and id(names) not in used}
    for key in others:
        del marked[key]
    try:
        yield
    finally:
        marked.update(others)


@contextmanager
def _recorded_lengths(network: nn.Module) -> Iterator[None]:
    """Records ``len(x)``, which Python wants to be a number."""

    def length(x: Any) -> Any:
        if not isinstance(x, fx.Proxy):
            return len(x)
        tracer: Any = x.tracer
        return x.size(0) if (found := tracer.length(x)) is None else found

    spaces = {id(each): each for each in map(_globals_of, network.modules()) if "len" not in each}
    for names in spaces.values():
        names["len"] = length
    try:
        yield
    finally:
        for names in spaces.values():
            del names["len"]


@contextmanager
def _recorded_sizes() -> Iterator[None]:
    """Records ``torch.zeros(len(x))`` and the like, whose arguments say nothing to torch.fx."""
    kept: dict[str, Callable[..., Any]] = {name: getattr(torch, name) for name in _MAKING}

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> Any:
            proxies: list[fx.Proxy] = []
            fx.node.map_aggregate((args, kwargs), lambda x: proxies.append(x) if isinstance(x, fx.Proxy) else None)
            if proxies:
                tracer: Any = proxies[0].tracer
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return record

    for name, function in kept.items():
        setattr(torch, name, recording(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)
