"""Block reconstruction: all weights of a block up or down, so that its output changes least (Li et al. 2021, "BRECQ").

A block is what lies between two stored tensors that alone lead from one part of the network to the next: a residual
block, or a single layer of a plain network. Its rounding starts from AdaRound's and is learned in AdaRound's relaxation
on mini-batches, with the mean squared error of the block's output as the loss. The paper weights that error by squared
gradients of the task's loss (eq. 10); here it is not weighted, and blocks read what the float network gives them, so
that a block's rounding depends on its own bits alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from quantenv.graph.ops import geometry_of
from quantenv.quantization.adaround import (
    WARM_UP,
    adaround,
    beta,
    by_groups,
    inverse_rectified_sigmoid,
    neighbours,
    rectified_sigmoid,
)
from quantenv.quantization.formats import Grid
from quantenv.quantization.moments import InputMoments, mean_is_corrected, patches
from quantenv.quantization.optimizers import Adam

if TYPE_CHECKING:
    from quantenv.quantization.calibration import Calibration

#: Calibration inputs that a block learns from, the first ones: at most so many, and so many bytes of its output.
IMAGES, OUTPUT_BYTES = 256, 1 << 28
#: Inputs of a step, steps of Adam and their size. On ResNet-20 at 3 bits, smaller weights of the regulariser (0.3 to 3)
#: left blocks worse than AdaRound alone: too much was undecided at the end.
BATCH, STEPS, LEARNING_RATE, REGULARISER = 32, 200, 0.02, 10.0
#: How far a weight starts from its float value towards where AdaRound rounds it.
TOWARDS_ADAROUND, EDGE = 0.95, 0.01
#: Inputs run at once where nothing is learned.
RUN_AT_ONCE = 64


@dataclass(frozen=True)
class Block:
    """A part of the graph with one tensor in and one out."""

    entry: fx.Node
    """What it reads."""
    nodes: tuple[fx.Node, ...]
    """What it computes, in order; the last is its output."""
    layers: tuple[str, ...]
    """Names of its quantizable layers, at least one."""


def find_blocks(calibration: "Calibration") -> tuple[Block, ...]:
    """Cuts a network wherever a single stored tensor leads on, into parts that hold at least one layer each."""
    nodes = [node for node in calibration.graph.graph.nodes if node.op != "output"]
    place = {node: index for index, node in enumerate(calibration.graph.graph.nodes)}
    names = {layer.name for layer in calibration.modules}
    stored = {site.node for site in calibration.sites}
    (entry,) = (node for node in nodes if node.op == "placeholder")
    computed = {entry}
    for node in nodes:
        if computed.intersection(node.all_input_nodes):
            computed.add(node)
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in computed}
    blocks: list[Block] = []
    part: list[fx.Node] = []
    alive = {entry}
    for node in nodes:
        if node is entry or node not in computed:
            continue
        part.append(node)
        alive = {each for each in alive | {node} if last_use[each] > place[node]}
        if node is nodes[-1] or (alive == {node} and node.name in stored):
            blocks.append(Block(entry, tuple(part), tuple(str(n.target) for n in part if _is_layer(n, names))))
            entry, part = node, []
    if part:
        blocks.append(Block(entry, tuple(part), tuple(str(n.target) for n in part if _is_layer(n, names))))
    return tuple(_merged(blocks))


def _is_layer(node: fx.Node, names: set[str]) -> bool:
    return node.op == "call_module" and str(node.target) in names


def _merged(blocks: list[Block]) -> Iterator[Block]:
    """Adds what has no layer to the block before, and to the one behind where there is none."""
    waiting: Block | None = None
    for block in blocks:
        if waiting is None:
            waiting = block
        elif waiting.layers and block.layers:
            yield waiting
            waiting = block
        else:
            waiting = Block(waiting.entry, waiting.nodes + block.nodes, waiting.layers + block.layers)
    if waiting is not None:
        yield waiting


def reconstruct(calibration: "Calibration", block: Block, bits: int, moments: InputMoments) -> dict[str, torch.Tensor]:
    """Rounds the weights of a block's layers, each up or down, so that its output changes least.

    Args:
        calibration: The calibrated network.
        block: One of `find_blocks`.
        bits: Bits of all the block's weights.
        moments: What AdaRound starts from.

    Returns:
        Whole numbers of each layer's grid, by its name. On the inputs learned from, the output's mean squared error is
        at most that of AdaRound.
    """
    layers = {name: _SoftLayer(calibration, name, bits, moments.of(name)) for name in block.layers}
    features = [site.features for site in calibration.sites if site.node == block.nodes[-1].name]
    images = max(BATCH, min(IMAGES, OUTPUT_BYTES // (4 * max([1, *features]))))
    runner = _Runner(calibration.graph, layers)
    with torch.no_grad():
        batches = calibration.inputs[:images].split(RUN_AT_ONCE)
        inputs = torch.cat([runner.until(block.entry, batch) for batch in batches])
        outputs = torch.cat([runner.through(block, batch) for batch in inputs.split(RUN_AT_ONCE)])

    def error() -> float:
        pairs = zip(inputs.split(RUN_AT_ONCE), outputs.split(RUN_AT_ONCE), strict=True)
        with torch.no_grad(), runner.rounding(hard=True):
            total = sum(float((runner.through(block, x) - y).double().square().sum()) for x, y in pairs)
        return total / outputs.numel()

    before = error()
    started = {name: layer.codes() for name, layer in layers.items()}
    if before > 0:
        _learn(runner, block, inputs, outputs / before**0.5, before**0.5)
    return {name: layer.codes() for name, layer in layers.items()} if error() < before else started


def _learn(runner: "_Runner", block: Block, inputs: torch.Tensor, targets: torch.Tensor, unit: float) -> None:
    """Minimises the squared error of outputs, divided by a unit, and the regulariser of eq. 24."""
    values = [layer.values.requires_grad_() for layer in runner.layers.values()]
    optimizer = Adam(values, LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    order: list[torch.Tensor] = []
    for step in range(1, STEPS + 1):
        if not order:
            order = list(torch.randperm(len(inputs), generator=generator).split(BATCH))
        chosen = order.pop()
        with torch.enable_grad(), runner.rounding(hard=False):
            loss = (runner.through(block, inputs[chosen]) / unit - targets[chosen]).square().mean()
            if step > WARM_UP * STEPS:
                exponent = beta(step / STEPS)
                for each in values:
                    decided = (2 * rectified_sigmoid(each) - 1).abs().pow(exponent)
                    loss = loss + REGULARISER * (1 - decided).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    for each in values:
        each.requires_grad_(False)


class _SoftLayer:
    """A layer whose weights lie between two whole numbers of their grid each, as far up as learned."""

    def __init__(self, calibration: "Calibration", name: str, bits: int, moments: torch.Tensor) -> None:
        module: Any = calibration.graph.get_submodule(name)
        grid = calibration.linear_grids[name][bits]
        assert isinstance(grid, Grid)
        self.module, self.weight, self.scale = module, module.weight.detach(), grid.scale
        self.low, self.high = neighbours(self.weight, grid)
        span = self.high - self.low
        share = ((self.weight / self.scale.where(self.scale > 0, 1.0) - self.low) / span.where(span > 0, 1.0)).clamp(
            0, 1
        )
        up = (adaround(self.weight, grid, moments) > self.low).float()
        start = TOWARDS_ADAROUND * up + (1 - TOWARDS_ADAROUND) * share
        self.values = inverse_rectified_sigmoid(start.clamp(EDGE, 1 - EDGE))
        self.mean: torch.Tensor | None = None
        if mean_is_corrected(calibration, name):
            mean_input = calibration.mean_inputs[name].clone()
            self.mean = patches(module, mean_input, mean_input.numel()).mean(2, keepdim=True)  # (G, K, 1)

    def codes(self) -> torch.Tensor:
        """Returns the whole numbers that its weights are rounded to."""
        return torch.where(self.values.detach() >= 0, self.high, self.low)

    def __call__(self, x: torch.Tensor, hard: bool) -> torch.Tensor:
        """Runs the layer, hard or as far up as learned, with its outputs' mean put right if the scheme does so."""
        codes = self.codes() if hard else self.low + (self.high - self.low) * rectified_sigmoid(self.values)
        weight, bias, module = codes * self.scale, self.module.bias, self.module
        if self.mean is not None:
            shift = torch.matmul(by_groups(self.weight - weight, len(self.mean)), self.mean).flatten()
            bias = shift if bias is None else bias.detach() + shift
        return geometry_of(module).run(x, weight, bias)


class _Runner(fx.Interpreter):
    """Runs parts of the float graph, with the weights of some layers rounded or not."""

    def __init__(self, graph: fx.GraphModule, layers: dict[str, _SoftLayer]) -> None:
        super().__init__(graph)
        self.layers = layers
        self._hard: bool | None = None
        self._nodes = list(graph.graph.nodes)
        self._constants = {node: self.run_node(node) for node in self._nodes if node.op == "get_attr"}

    def rounding(self, hard: bool) -> "_Rounding":
        """Has the layers run with rounded weights while the result is entered."""
        return _Rounding(self, hard)

    def until(self, last: fx.Node, inputs: torch.Tensor) -> torch.Tensor:
        """Returns what a node of the float graph computes from the network's inputs."""
        self.env = dict(self._constants)
        for node in self._nodes:
            self.env[node] = inputs if node.op == "placeholder" else self.run_node(node)
            if node is last:
                break
            for unused in self.user_to_last_uses.get(node, []):
                self.env.pop(unused)
        value: torch.Tensor = self.env[last]
        return value

    def through(self, block: Block, inputs: torch.Tensor) -> torch.Tensor:
        """Returns what a block makes of its input."""
        self.env = {**self._constants, block.entry: inputs}
        for node in block.nodes:
            self.env[node] = self.run_node(node)
        value: torch.Tensor = self.env[block.nodes[-1]]
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a module, or a layer of the block with rounded weights."""
        if self._hard is not None and target in self.layers:
            return self.layers[target](args[0], self._hard)
        return super().call_module(target, args, kwargs)


class _Rounding:
    def __init__(self, runner: _Runner, hard: bool) -> None:
        self._runner, self._rounded = runner, hard

    def __enter__(self) -> None:
        self._runner._hard = self._rounded

    def __exit__(self, *_: object) -> None:
        self._runner._hard = None
