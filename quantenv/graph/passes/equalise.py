"""Cross-layer equalisation and bias absorption (Nagel et al. 2019, "Data-Free Quantization", section 4.1).

Scaling a channel down in one layer and up in the next changes nothing in a float network whose function between them
is positively homogeneous, as ReLU is (eq. 7 and 8). It is chosen so that both layers' ranges agree in every channel.
Where that leaves a channel's values far above zero, a constant is moved into the next layer's bias (section 4.1.3).

Which input of the second layer holds which channel of the first is followed through the graph by the shapes that its
tensors really have; a pair for which that cannot be shown is left as it is.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.graph.ops import LAYERS, geometry_of, op_of
from quantenv.graph.tracing import shapes_of

#: Sweeps over all pairs at most; fewer if no scale moves by more than `TOLERANCE`.
SWEEPS = 50
TOLERANCE = 1e-4
_RELUS = {torch.relu, F.relu, "relu"}
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLING = {F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_UNCHANGED = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
_FLATTENING = {torch.flatten, "flatten"}
#: Functions whose arguments may be a padding with zeros that count in the mean, or a divisor.
_WEIGHING = {F.avg_pool2d}
#: Standard deviations below its mean at which a channel's values are taken to begin: 0.135% of a normal distribution
#: lie lower (section 4.1.3).
DEVIATIONS = 3.0


@dataclass(frozen=True)
class Pair:
    """Two layers, of which the second reads the channels of the first and nothing else does."""

    first: str
    """Name of the first layer."""
    second: str
    """Name of the second."""
    channels: torch.Tensor
    """Which channel of the first each input channel (of a Conv2d) or feature (of a Linear) of the second holds."""
    between: tuple[str, ...]
    """Nodes that hold the first's channels, from its own on."""
    relus: Mapping[str, torch.Tensor]
    """By those nodes that are ReLUs, which channel each of their values holds, in a shape that broadcasts to theirs."""

    @property
    def names(self) -> tuple[str, str]:
        """Both names."""
        return self.first, self.second


def equalise(graph: fx.GraphModule, example: torch.Tensor) -> list[Pair]:
    """Equalises the weight ranges of all pairs of layers that follow each other, in place.

    A pair is two layers with nothing but ReLUs, pools and flattening between them, whose values
    nothing else reads. Where maps are flattened, all inputs that hold a channel have its factor. ReLU6 and other
    bounded or smooth functions are not homogeneous: layers around them are left as they are. Range is the largest
    absolute weight; the factors are those of eq. 11, and pairs are swept until they no longer move (section 4.1.2).

    Args:
        graph: A folded network from `quantenv.graph.tracing.trace`, changed in place; its outputs stay the same up
            to float rounding.
        example: An input, (1, ...), whose shapes are followed.

    Returns:
        The pairs, in execution order.
    """
    modules = dict(graph.named_modules())
    pairs = _pairs(graph, modules, example, _homogeneous)
    read = {pair.second: pair.channels for pair in pairs}
    ranges = {name: _ranges(modules[name], read.get(name)) for pair in pairs for name in pair.names}
    factors = {pair.first: torch.ones(ranges[pair.first].shape[:2].numel()) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            factor = _equalised(ranges[pair.first], ranges[pair.second])
            factors[pair.first] *= factor
            moved = max(moved, float(factor.log().abs().max()))
        if moved < TOLERANCE:
            break
    for pair in pairs:
        _rescale(modules[pair.first], modules[pair.second], factors[pair.first], pair.channels)
    return pairs


def absorb(
    graph: fx.GraphModule, moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]], example: torch.Tensor
) -> list[tuple[Pair, torch.Tensor]]:
    """Moves the part of layers' biases that ReLUs pass unchanged into the layers that follow, in place.

    ``c = max(0, mean - 3 deviations)`` of a channel's outputs is subtracted from the layer's bias, and what the next
    layer makes of c is added to that one's: ``b1 - c`` and ``b2 + W2 c`` (eq. 12 to 15). Values then use the range of
    their quantizer from its lower end. Outputs stay the same but for values below c, which a ReLU now raises to c. By
    how much on average is bounded for any distribution: ``E max(0, c - z) <= (sqrt(10) - 3) / 2`` deviations, 0.081
    (Scarf 1958, "A min-max solution of an inventory problem"). The paper takes mean and deviation from the batch norm;
    here they are measured, so that layers without one can be absorbed, too. Layers whose input is padded are left out:
    at the border, zeros would stand for values that now are -c.

    Args:
        graph: A folded network, changed in place.
        moments: Mean and variance of each layer's outputs by channel, before any ReLU, by name (see
            `quantenv.quantization.corrections.output_moments`).
        example: An input, (1, ...), whose shapes are followed.

    Returns:
        The pairs, in execution order: those of `equalise`, but for padding; with the constants c, (C,), of each.
    """
    modules = dict(graph.named_modules())
    pairs = [pair for pair in _pairs(graph, modules, example, _shiftable) if not _padded(modules[pair.second])]
    absorbed = []
    for pair in pairs:
        mean, variance = moments[pair.first]
        constant = (mean - DEVIATIONS * variance.sqrt()).clamp(min=0)
        _absorb_pair(modules[pair.first], modules[pair.second], constant, constant[pair.channels])
        absorbed.append((pair, constant))
    return absorbed


def _absorb_pair(first: Any, second: Any, constant: torch.Tensor, read: torch.Tensor) -> None:
    """Moves a constant of each channel, (C,), from one layer to the next, which reads it as (I,)."""
    weight = _by_channel(second)
    passed_on = (weight * read.view(len(weight), 1, -1, 1)).sum((2, 3)).flatten()  # W2 c
    for layer, change in ((first, -constant), (second, passed_on)):
        layer.bias = nn.Parameter(change if layer.bias is None else layer.bias.data + change)


def _ranges(layer: Any, channels: torch.Tensor | None) -> torch.Tensor:
    """Returns a layer's largest absolute weights by output and input channel, (G, O / G, I / G): all that sweeps need.

    Args:
        layer: The layer.
        channels: Which channel each of its inputs holds; inputs that hold the same one are taken together.
    """
    ranges = _by_channel(layer).abs().amax(3)
    if channels is None or op_of(layer).dims:
        return ranges
    together = ranges.new_zeros(1, ranges.shape[1], int(channels.max()) + 1)
    return together.scatter_reduce(2, channels.expand_as(ranges), ranges, "amax")


def _equalised(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Scales the ranges of one pair by eq. 11, in place; returns the factors, (C,)."""
    out_range, in_range = first.amax(2).flatten(), second.amax(1).flatten()
    sound = (out_range > 0) & (in_range > 0)
    factor = torch.where(sound, (out_range / in_range.where(sound, 1.0)).sqrt(), 1.0)  # s = sqrt(r1 r2) / r2
    first.div_(factor.view(*first.shape[:2], 1))
    second.mul_(factor.view(len(second), 1, -1))
    return factor


def _rescale(first: Any, second: Any, factor: torch.Tensor, channels: torch.Tensor) -> None:
    """Divides what the first layer puts out by the factors, (C,), and has the second multiply by them."""
    first.weight.data.div_(factor.view((-1,) + (1,) * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.data.div_(factor)
    by_channel = _by_channel(second)
    by_channel.mul_(factor[channels].view(len(by_channel), 1, -1, 1))


def _by_channel(layer: Any) -> torch.Tensor:
    """Returns a view of a layer's weights, (G, O / G, I / G, K): groups, channels out and in, places in the kernel."""
    groups, weight = geometry_of(layer).groups, layer.weight.data
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _pairs(
    graph: fx.GraphModule,
    modules: dict[str, nn.Module],
    example: torch.Tensor,
    crossed: Callable[[fx.Node, dict[str, nn.Module]], bool],
) -> list[Pair]:
    """Finds layers that follow each other with nothing but nodes that may be crossed between them."""
    shapes = shapes_of(graph, example)
    pairs = []
    for node in graph.graph.nodes:
        first = _layer(node, modules)
        if first is None or node not in shapes:
            continue
        name, dimension = str(node.target), _channel_dimension(first, shapes[node])
        channels = torch.arange(shapes[node][dimension])
        between = [node.name]
        relus: dict[str, torch.Tensor] = {}
        while len(node.users) == 1:
            source, node = node, next(iter(node.users))
            second = _layer(node, modules)
            if second is not None:
                if dimension == _channel_dimension(second, shapes[source]) and len(channels) == _inputs(second):
                    pairs.append(Pair(name, str(node.target), channels, tuple(between), relus))
                break
            if not crossed(node, modules) or node not in shapes:
                break
            if _is(node, modules, _POOLS, _POOLING) and not (len(shapes[source]) == 4 and dimension == 1):
                break  # it pools over the channels
            if _is(node, modules, (nn.Flatten,), _FLATTENING):
                flattened = _flattened(node, modules, shapes[source], dimension, channels)
                if flattened is None:
                    break
                dimension, channels = flattened
            between.append(node.name)
            if _is(node, modules, (nn.ReLU,), _RELUS):
                relus[node.name] = channels.view(-1, *[1] * (len(shapes[node]) - 1 - dimension))
    return pairs


def _flattened(
    node: fx.Node, modules: dict[str, nn.Module], shape: torch.Size, dimension: int, channels: torch.Tensor
) -> tuple[int, torch.Tensor] | None:
    """Returns which dimension channels are in behind a flattening, and which each place in it holds.

    None if samples are flattened, too.
    """
    start, end = _flattened_dimensions(node, modules, len(shape))
    if start == 0:
        return None
    if not start <= dimension <= end:
        return dimension - (end - start if dimension > end else 0), channels
    here = [1] * (end - start + 1)
    here[dimension - start] = -1
    return start, channels.view(here).expand(shape[start : end + 1]).flatten()


def _flattened_dimensions(node: fx.Node, modules: dict[str, nn.Module], rank: int) -> tuple[int, int]:
    """Returns the first and the last dimension that a node flattens."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
    else:
        given: dict[str, Any] = {
            "start_dim": 0,
            "end_dim": -1,
            **dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)),
        }
        given |= node.kwargs
        start, end = given["start_dim"], given["end_dim"]
    return start % rank, end % rank


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    module = modules[str(node.target)] if node.op == "call_module" else None
    return module if isinstance(module, LAYERS) else None


def _channel_dimension(layer: nn.Module, shape: torch.Size) -> int:
    """Returns the dimension that a layer's channels or features are in, of its input's or output's shape."""
    return len(shape) - 1 - op_of(layer).dims


def _inputs(layer: Any) -> int:
    """Returns how many channels or features a layer reads."""
    return int(layer.weight.shape[1]) * geometry_of(layer).groups


def _is(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type[nn.Module], ...], functions: Set[Any]) -> bool:
    """Whether a node calls a module of some kinds, or a function or method of some."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], kinds)
    return node.op in ("call_function", "call_method") and node.target in functions


def _homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node maps every channel by itself, positively homogeneously."""
    return _is(
        node, modules, (*_UNCHANGED, *_POOLS, nn.Flatten), {*_RELUS, *_POOLING, *_FLATTENING, F.dropout, F.dropout2d}
    )


def _shiftable(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node also lets a constant that its values are above pass unchanged."""
    if node.op == "call_function" and node.target in _WEIGHING:
        return False
    module = modules[str(node.target)] if node.op == "call_module" else None
    if isinstance(module, nn.AvgPool2d) and (
        module.divisor_override is not None or (module.count_include_pad and module.padding not in (0, (0, 0)))
    ):
        return False
    return _homogeneous(node, modules)


def _padded(layer: nn.Module) -> bool:
    geometry = geometry_of(layer)
    return geometry.op.transposed or any(geometry.padding)
