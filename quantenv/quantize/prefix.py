"""Running many allocations of one network so that what they share is computed once.

Allocations whose first switched modules have equal settings share the activations up to there. `PrefixRunner` starts
each allocation at the first setting that differs from those of the one before. Given allocations in sorted order this
walks them depth first: each module runs once for each distinct prefix. It keeps the live tensors in front of those
switched modules only at which a later allocation starts: everything else is freed at once, and its memory, still in the
processor's caches, used again.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from quantenv.quantize.network import QuantizedNetwork
from quantenv.quantize.switched import Setting, Switched


@dataclass(frozen=True)
class _Step:
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


class PrefixRunner:
    """Runs a quantized network's graph, each distinct prefix of settings once.

    Args:
        network: The network; its selected allocation is changed by running.
    """

    def __init__(self, network: QuantizedNetwork) -> None:
        self._network = network
        nodes = list(network.module.graph.nodes)
        registers = {node: index for index, node in enumerate(nodes)}
        last_use = {node: max((registers[user] for user in node.users), default=-1) for node in nodes}
        (self._input,) = (registers[node] for node in nodes if node.op == "placeholder")
        self._steps: list[_Step] = []
        self._switch_steps: list[int] = []
        self._switched: dict[int, int] = {}
        for node in nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                self._output = registers[node.args[0]]
                continue
            function, first = _callable(network.module, node)
            if isinstance(function, Switched):
                self._switched[len(self._steps)] = len(self._switch_steps)
                self._switch_steps.append(len(self._steps))
            # map_arg's types know only values that a graph may hold
            arguments, keywords = cast(Any, fx.map_arg)((first, node.kwargs), lambda n: _Register(registers[n]))
            dead = tuple(registers[n] for n in node.all_input_nodes if last_use[n] == registers[node])
            self._steps.append(_Step(function, arguments, keywords, registers[node], dead))
        self._size = len(nodes)

    def run(self, inputs: torch.Tensor, settings: Sequence[tuple[Setting, ...]]) -> Iterator[torch.Tensor]:
        """Runs one batch under many allocations. Threads may do so at once: each run keeps its own activations.

        Args:
            inputs: Shape (B, ...).
            settings: One `QuantizedNetwork.settings` for each allocation; sorted, they share the most.

        Yields:
            Logits, shape (B, classes), for each allocation, in order. They must not be changed in place.
        """
        starts = _starts(settings)
        later = _later(starts)
        kept: dict[int, list[Any]] = {}  # registers in front of switched modules, by the modules' indices
        registers: list[Any] = [None] * self._size
        registers[self._input] = inputs
        for index, (wanted, start) in enumerate(zip(settings, starts, strict=True)):
            if start is not None:
                position = 0
                if index:
                    registers, position = kept.pop(start), self._switch_steps[start]
                with self._network.lock, torch.inference_mode():
                    self._network.switch(wanted, start)
                    self._advance(registers, position, later[index], kept)
            yield registers[self._output]

    def _advance(
        self, registers: list[Any], position: int, wanted: Collection[int], kept: dict[int, list[Any]]
    ) -> None:
        """Runs the steps from `position` to the end and keeps the registers in front of `wanted` switched modules."""
        for index in range(position, len(self._steps)):
            step = self._steps[index]
            if self._switched.get(index) in wanted:
                kept[self._switched[index]] = registers.copy()
            arguments = [_load(registers, argument) for argument in step.arguments]
            keywords = {key: _load(registers, value) for key, value in step.keywords.items()}
            registers[step.target] = step.function(*arguments, **keywords)
            for register in step.dead:
                registers[register] = None


def _load(registers: list[Any], argument: Any) -> Any:
    if isinstance(argument, _Register):
        return registers[argument.index]
    if isinstance(argument, tuple | list):
        return type(argument)([_load(registers, item) for item in argument])
    if isinstance(argument, slice):
        return slice(*(_load(registers, item) for item in (argument.start, argument.stop, argument.step)))
    return argument


def _starts(settings: Sequence[tuple[Setting, ...]]) -> list[int | None]:
    """Returns the first switched module at which each allocation differs from the one before, None if none does."""
    starts: list[int | None] = [0] if settings else []
    for before, wanted in itertools.pairwise(settings):
        pairs = enumerate(zip(wanted, before, strict=True))
        starts.append(next((index for index, (new, old) in pairs if new != old), None))
    return starts


def _later(starts: Sequence[int | None]) -> list[set[int]]:
    """Returns for each allocation the modules at which later ones start with its activations."""
    result: list[set[int]] = []
    ahead: set[int] = set()
    for start in reversed(starts):
        result.append(ahead)
        if start is not None:
            ahead = {module for module in ahead if module < start} | {start}
    return result[::-1]


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
