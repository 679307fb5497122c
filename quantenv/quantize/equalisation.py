"""Cross-layer equalisation and bias absorption (Nagel et al. 2019, "Data-Free Quantization", section 4.1).

Scaling a channel down in one layer and up in the next changes nothing in a float network whose function between them
is positively homogeneous, as ReLU is (eq. 7 and 8). It is chosen so that both layers' ranges agree in every channel.
Where that leaves a channel's values far above zero, a constant is moved into the next layer's bias (section 4.1.3).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

#: Sweeps over all pairs at most; fewer if no scale moves by more than `TOLERANCE`.
SWEEPS = 50
TOLERANCE = 1e-4
_HOMOGENEOUS_MODULES = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MOVING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)
_FUNCTIONS = {torch.relu, F.relu, torch.flatten, F.max_pool2d, torch.max_pool2d, F.avg_pool2d}
_FUNCTIONS |= {F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.dropout2d}
_METHODS = {"relu", "flatten"}
#: Functions whose arguments may be a padding with zeros that count in the mean.
_PADDING_FUNCTIONS = {F.avg_pool2d}
#: Standard deviations below its mean at which a channel's values are taken to begin: 0.135% of a normal distribution
#: lie lower (section 4.1.3).
DEVIATIONS = 3.0


def equalise(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Equalises the weight ranges of all pairs of layers that follow each other, in place.

    A pair is two Conv2d or Linear layers with nothing but ReLUs, pools and flattening between them, whose values
    nothing else reads, and as many channels out of the first as into the second. ReLU6 and other bounded or smooth
    functions are not homogeneous: layers around them are left as they are. Range is the largest absolute weight; the
    factors are those of eq. 11, and pairs are swept until they no longer move (section 4.1.2).

    Args:
        graph: A folded network from `quantenv.quantize.tracing.trace`, changed in place; its outputs stay the same up
            to float rounding.

    Returns:
        The names of the pairs, in execution order.
    """
    modules = dict(graph.named_modules())
    pairs = _pairs(graph, modules, _homogeneous)
    for _ in range(SWEEPS):
        moved = max((_equalise_pair(modules[first], modules[second]) for first, second in pairs), default=0.0)
        if moved < TOLERANCE:
            break
    return pairs


def absorb(graph: fx.GraphModule, moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[str, str]]:
    """Moves the part of layers' biases that ReLUs pass unchanged into the layers that follow, in place.

    ``c = max(0, mean - 3 deviations)`` of a channel's outputs is subtracted from the layer's bias, and what the next
    layer makes of c is added to that one's: ``b1 - c`` and ``b2 + W2 c`` (eq. 12 to 15). Values then use the range of
    their quantizer from its lower end. Outputs stay the same but for values below c, which a ReLU now clips. The paper
    takes mean and deviation from the batch norm; here they are measured, so that layers without one can be absorbed,
    too. Layers whose input is padded are left out: at the border, zeros would stand for values that now are -c.

    Args:
        graph: A folded network, changed in place.
        moments: Mean and variance of each layer's outputs by channel, before any ReLU, by name (see
            `quantenv.quantize.corrections.measure`).

    Returns:
        The names of the pairs, in execution order: those of `equalise`, but for padding.
    """
    modules = dict(graph.named_modules())
    pairs = [(first, second) for first, second in _pairs(graph, modules, _shiftable) if not _padded(modules[second])]
    for first, second in pairs:
        mean, variance = moments[first]
        _absorb_pair(modules[first], modules[second], (mean - DEVIATIONS * variance.sqrt()).clamp(min=0))
    return pairs


def _absorb_pair(first: nn.Module, second: nn.Module, constant: torch.Tensor) -> None:
    """Moves a constant of each channel, (C,), from one layer to the next."""
    assert isinstance(first, nn.Conv2d | nn.Linear)
    assert isinstance(second, nn.Conv2d | nn.Linear)
    weight = _by_channel(second)
    passed_on = (weight * constant.view(len(weight), 1, -1, 1)).sum((2, 3)).flatten()  # W2 c
    for layer, change in ((first, -constant), (second, passed_on)):
        layer.bias = nn.Parameter(change if layer.bias is None else layer.bias.data + change)


def _equalise_pair(first: nn.Module, second: nn.Module) -> float:
    """Scales one pair by eq. 11; returns the largest logarithm of a factor."""
    assert isinstance(first, nn.Conv2d | nn.Linear)
    assert isinstance(second, nn.Conv2d | nn.Linear)
    by_channel = _by_channel(second)
    out_range = first.weight.data.abs().flatten(1).amax(1)
    in_range = by_channel.abs().amax((1, 3)).flatten()
    sound = (out_range > 0) & (in_range > 0)
    factor = torch.where(sound, (out_range / in_range.where(sound, 1.0)).sqrt(), 1.0)  # s = sqrt(r1 r2) / r2
    first.weight.data.div_(factor.view((-1,) + (1,) * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.data.div_(factor)
    by_channel.mul_(factor.view(len(by_channel), 1, -1, 1))
    return float(factor.log().abs().max())


def _by_channel(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """Returns a view of a layer's weights, (G, O / G, I / G, K): groups, channels out and in, places in the kernel."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.data
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _pairs(
    graph: fx.GraphModule, modules: dict[str, nn.Module], crossed: Callable[[fx.Node, dict[str, nn.Module]], bool]
) -> list[tuple[str, str]]:
    """Finds layers that follow each other with nothing but nodes that may be crossed between them."""
    pairs = []
    for node in graph.graph.nodes:
        first = _layer(node, modules)
        if first is None:
            continue
        while len(node.users) == 1:
            node = next(iter(node.users))
            second = _layer(node, modules)
            if second is not None and _channels(second)[0] == _channels(first)[1]:
                pairs.append((first, second))
            if second is not None or not crossed(node, modules):
                break
    return [(str(a), str(b)) for a, b in _named(pairs, modules)]


def _named(pairs: list[tuple[nn.Module, nn.Module]], modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    names = {id(module): name for name, module in modules.items()}
    return [(names[id(first)], names[id(second)]) for first, second in pairs]


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    module = modules[str(node.target)] if node.op == "call_module" else None
    return module if isinstance(module, nn.Conv2d | nn.Linear) else None


def _channels(layer: nn.Module) -> tuple[int, int]:
    """Returns (in, out) channels."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def _homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node maps every channel by itself, positively homogeneously."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _HOMOGENEOUS_MODULES + _MOVING_MODULES)
    return node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS)


def _shiftable(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node also lets a constant that its values are above pass unchanged."""
    if node.op == "call_function" and node.target in _PADDING_FUNCTIONS:
        return False
    module = modules[str(node.target)] if node.op == "call_module" else None
    if isinstance(module, nn.AvgPool2d) and module.count_include_pad and module.padding not in (0, (0, 0)):
        return False
    return _homogeneous(node, modules)


def _padded(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), "valid")
