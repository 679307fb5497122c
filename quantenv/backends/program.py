"""A graph as a list of calls on numbered registers, which can be run in parts and gone on with from copies."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from quantenv.quantization.switched import Setting, Switched


@dataclass(frozen=True)
class Step:
    """One call of the graph. Values live in numbered registers."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    target: int
    dead: tuple[int, ...]
    """Registers that no later step reads."""


@dataclass(frozen=True)
class _Register:
    index: int


class Program:
    """The calls of a graph module with one input and one output, in order.

    Args:
        module: The graph module; its modules are called as they are when a step runs.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        nodes = list(module.graph.nodes)
        registers = {node: index for index, node in enumerate(nodes)}
        last_use = {node: max((registers[user] for user in node.users), default=-1) for node in nodes}
        (self._input,) = (registers[node] for node in nodes if node.op == "placeholder")
        self.steps: list[Step] = []
        self.switched: list[int] = []
        """Steps that call modules which an allocation switches."""
        for node in nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                self.output = registers[node.args[0]]
                """Register of the output."""
                continue
            function, first = _callable(module, node)
            if isinstance(function, Switched):
                self.switched.append(len(self.steps))
            # map_arg's types know only values that a graph may hold
            arguments, keywords = cast(Any, fx.map_arg)((first, node.kwargs), lambda n: _Register(registers[n]))
            dead = tuple(registers[n] for n in node.all_input_nodes if last_use[n] == registers[node])
            self.steps.append(Step(function, arguments, keywords, registers[node], dead))
        self._size = len(nodes)

    def registers(self, inputs: torch.Tensor) -> list[Any]:
        """Returns registers that hold inputs, (B, ...), and nothing else."""
        registers: list[Any] = [None] * self._size
        registers[self._input] = inputs
        return registers

    def arguments(self, registers: list[Any], index: int) -> list[Any]:
        """Returns what a step would be given in its places."""
        return [_load(registers, argument) for argument in self.steps[index].arguments]

    def run(self, registers: list[Any], first: int, last: int) -> None:
        """Runs the steps from the `first` to before the `last`; registers change in place."""
        for index in range(first, last):
            step = self.steps[index]
            keywords = {key: _load(registers, value) for key, value in step.keywords.items()}
            registers[step.target] = step.function(*self.arguments(registers, index), **keywords)
            for register in step.dead:
                registers[register] = None


def starts(settings: Sequence[tuple[Setting, ...]]) -> list[int | None]:
    """Returns the first switched module at which each allocation differs from the one before, None if none does."""
    result: list[int | None] = [0] if settings else []
    for before, wanted in itertools.pairwise(settings):
        pairs = enumerate(zip(wanted, before, strict=True))
        result.append(next((index for index, (new, old) in pairs if new != old), None))
    return result


def later(starts: Sequence[int | None]) -> list[set[int]]:
    """Returns for each allocation the modules at which later ones start with its activations."""
    result: list[set[int]] = []
    ahead: set[int] = set()
    for start in reversed(starts):
        result.append(ahead)
        if start is not None:
            ahead = {module for module in ahead if module < start} | {start}
    return result[::-1]


def _load(registers: list[Any], argument: Any) -> Any:
    if isinstance(argument, _Register):
        return registers[argument.index]
    if isinstance(argument, tuple | list):
        return type(argument)([_load(registers, item) for item in argument])
    if isinstance(argument, slice):
        return slice(*(_load(registers, item) for item in (argument.start, argument.stop, argument.step)))
    return argument


def _callable(module: fx.GraphModule, node: fx.Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns what a node calls and its positional arguments."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target)), node.args
    if node.op == "call_function":
        assert callable(node.target)
        return node.target, node.args
    if node.op == "call_method":
        name = str(node.target)
        return lambda value, *rest, **keywords: getattr(value, name)(*rest, **keywords), node.args
    assert node.op == "get_attr"
    value = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return lambda: value, ()
