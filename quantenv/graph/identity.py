"""What a network computes, hashed: the same in every process, on every machine and for any number of threads.

Three parts, since none of them sees everything: the traced graph with all its constants and the settings of its layers;
all tensors; and, for what a graph does not show (hooks, functions that are leaves of the trace, branches), a
fingerprint of the outputs on real inputs. Functions that are not of an installed library are also told apart by
their code and what it refers to. Outputs are computed in double precision and rounded to a ten-thousandth of the
largest one, some nine digits above what threads or instruction sets change.
"""

import enum
import functools
import hashlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from quantenv.core.files import content_hash
from quantenv.graph.expressed import expressed
from quantenv.graph.functional import functional_graph

#: Packages whose functions and classes are known by their names.
_KNOWN = {"torch", "torchvision", "numpy", "quantenv", *sys.stdlib_module_names}
#: What Python adds to every class, or says nothing of what it does.
_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__", "_abc_impl"}
#: Inputs that the fingerprint is of.
FINGERPRINTED = 16
#: Binary digits below the largest output that fingerprints keep: in double precision, and in the network's own.
_DIGITS, _FEWER_DIGITS = 14, 7
#: Shifts the edges between rounded values away from fractions and powers of two, at which outputs like to lie.
_SHIFT = (3 - math.sqrt(5)) / 2
_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format, range, slice)


def network_content(network: nn.Module, inputs: torch.Tensor) -> Iterator[bytes | str]:
    """Yields what is to be hashed of a network.

    Args:
        network: The network, in eval mode.
        inputs: Samples, (N, ...), of which some are run.

    Raises:
        UnsupportedLayerError: If it cannot be traced.
    """
    yield "network-1"
    yield from _graph_content(functional_graph(expressed(network)))
    for kind in (network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)):
        for name, tensor in kind:
            yield f"{name}: {tensor_digest(tensor)}"
    yield fingerprint(network, inputs)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Returns what tells a tensor from others: type, shape and a hash of its values."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(values.data).hexdigest()[:32]}"


def fingerprint(network: nn.Module, inputs: torch.Tensor) -> str:
    """Returns a hash of the outputs on some inputs, the same for any number of threads and on any processor."""
    chosen = inputs[:: max(1, len(inputs) // FINGERPRINTED)][:FINGERPRINTED]
    digits = _DIGITS
    with torch.no_grad():
        try:
            with InDoublePrecision():
                outputs = network(chosen.double() if chosen.is_floating_point() else chosen)
        except (RuntimeError, TypeError, ValueError):  # it insists on a type
            outputs, digits = network(chosen), _FEWER_DIGITS
    outputs = outputs.detach().double().flatten(1)
    largest = float(outputs.abs().max())
    if not math.isfinite(largest):
        return "not finite"
    exponent = math.floor(math.log2(largest) + _SHIFT) - digits if largest else 0
    weights = torch.cos(torch.arange(outputs.shape[1], dtype=torch.float64))
    projected = (outputs @ weights).tolist()
    return str([exponent, *(math.floor(math.ldexp(value, -exponent) + _SHIFT) for value in projected)])


def _graph_content(graph_module: fx.GraphModule) -> Iterator[str]:
    """Yields a line for each node: numbered, since names say nothing of what is computed."""
    describe = _Description()
    modules = dict(graph_module.named_modules())
    numbers: dict[fx.Node, int] = {}
    for node in graph_module.graph.nodes:
        numbers[node] = len(numbers)
        if node.op == "call_module":
            target = describe(modules[str(node.target)])
        elif node.op == "get_attr":
            target = describe(functools.reduce(getattr, str(node.target).split("."), graph_module))
        elif node.op == "placeholder":  # its name is the user's
            target = ""
        else:
            target = describe(node.target)
        arguments = fx.map_arg((node.args, node.kwargs), lambda used: _Numbered(numbers[used]))  # type: ignore[arg-type,return-value]
        yield f"{node.op} {target} {describe(arguments)}"


class _Numbered:
    """A node as an argument, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Description:
    """Describes values so that equal texts mean equal behaviour, without addresses, in any process."""

    def __init__(self) -> None:
        self._within: list[int] = []  # ids of what is being described, from the outside in
        self._known: dict[int, tuple[Any, str]] = {}  # by id, with the value, so that its id stays its own

    def __call__(self, value: Any) -> str:
        """Returns the description of a value."""
        if value is None or isinstance(value, bool | int | str | bytes | complex):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, float):
            return f"float {value.hex()}"
        if isinstance(value, _Numbered):
            return f"%{value.number}"
        if isinstance(value, torch.Tensor):
            return tensor_digest(value)
        if isinstance(value, np.ndarray | np.generic):
            return f"{value.dtype.str} {value.shape} {content_hash([value.tobytes()])}"
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value}"
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))} {value.name}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if id(value) in self._within:  # such as a function that calls itself
            return f"{len(self._within) - self._within.index(id(value))} around"
        self._within.append(id(value))
        try:
            return self._composed(value)
        finally:
            self._within.pop()

    def _composed(self, value: Any) -> str:
        """Describes what is made of other values."""
        if isinstance(value, list | tuple):
            return f"{'tuple' if isinstance(value, tuple) else 'list'} [{', '.join(map(self, value))}]"
        if isinstance(value, set | frozenset):
            return f"set {sorted(map(self, value))}"
        if isinstance(value, dict):
            return f"dict {sorted((self(key), self(each)) for key, each in value.items())}"
        if isinstance(value, functools.partial):
            return f"partial {self(value.func)} {self(value.args)} {self(value.keywords)}"
        if isinstance(value, types.MethodType):
            return f"method {self(value.__func__)} of {self(value.__self__)}"
        if isinstance(value, types.CodeType):
            return f"code {content_hash([value.co_code])} {self(value.co_consts)} {self(value.co_names)}"
        if id(value) not in self._known:  # functions, classes and objects may be met often
            self._known[id(value)] = value, self._individual(value)
        return self._known[id(value)][1]

    def _individual(self, value: Any) -> str:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            return str(value)
        if hasattr(value, "__qualname__") or not hasattr(value, "__dict__"):
            return _name(value)
        return f"{self(type(value))} {self(vars(value))}"

    def _function(self, function: types.FunctionType) -> str:
        if _package(function.__globals__.get("__name__")) in _KNOWN:
            return _name(function)
        captured = []
        for cell in function.__closure__ or ():
            try:
                captured.append(cell.cell_contents)
            except ValueError:  # yet to be filled
                captured.append(None)
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, captured, _globals(function))
        return f"{_name(function)} {self(parts)}"

    def _class(self, kind: type) -> str:
        if _package(kind.__module__) in _KNOWN:
            return _name(kind)
        own = {key: value for key, value in vars(kind).items() if key not in _OF_EVERY_CLASS}
        plain = {key: getattr(value, "__func__", value) for key, value in own.items()}  # static and class methods
        return f"{_name(kind)} {self(kind.__bases__)} {self(plain)}"

    def _module(self, module: nn.Module) -> str:
        """Describes settings, tensors and hooks of a module that is a leaf of the graph, and of those within."""
        known = _package(type(module).__module__) in _KNOWN
        hidden = {"training", "inplace", *vars(nn.Module())}
        settings = {
            key: value for key, value in vars(module).items() if key not in hidden and not (known and key[0] == "_")
        }
        tensors = {**module._parameters, **module._buffers}
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        return (
            f"{self(type(module))} {self(settings)} {self(tensors)} {self(hooks)} {self(dict(module.named_children()))}"
        )


class InDoublePrecision(TorchFunctionMode):
    """Has every operation on floats compute in double precision, whatever types a network casts to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Widens an operation's tensors and types, and what it returns."""
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        return _widened(func(*_widened(args), **_widened(kwargs or {})))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if type(value) in (tuple, list):
        return type(value)(map(_widened, value))
    if type(value) is dict:
        return {key: _widened(each) for key, each in value.items()}
    return value


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Returns what a function's code refers to, and functions within it: global variables, attributes of modules."""
    codes = [function.__code__]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, value in list(found.items()):
        if isinstance(value, types.ModuleType) and _package(value.__name__) not in _KNOWN:
            found |= {f"{name}.{key}": vars(value)[key] for key in names if key in vars(value)}
    return found


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
