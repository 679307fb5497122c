"""Channel groups: parts of a layer's output channels, each with weight bits of its own.

Weights are quantized by output channel, so bits may differ between the channels of a layer: those that quantization
harms most get more. A layer's channels are cut into groups, the most sensitive first (`quantenv.sensitivity` measures
and cuts them), and each group takes the place of a layer in everything that lists layers: cost tables, allocations,
masks, solvers, agents. Activation bits belong to one tensor, which all groups of a layer read: they are equal in all of
them.

Hardware: what multiplies by one output channel after the other, or has a program for each layer, can change weight bits
between channels: bit-serial and bit-fused accelerators on FPGAs and ASICs (BISMO, BitFusion), and kernels that unpack
weights of fewer bits from memory and multiply in int8, where groups save size and bandwidth but no multiplications.
Ordinary GPU and CPU kernels have one type for all weights of a call: there, each group is a call of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.layers import LayerSpec

#: Between the name of a layer and the number of a group.
SEPARATOR = "#"

#: Channels of each group, by layer name; layers that are not named are whole.
Channels = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class ChannelGroup(LayerSpec):
    """Some output channels of a layer, described as a layer of that many.

    Parameters, biases and MACs are those of its channels, so that they add up to the layer's. A depthwise layer's group
    reads its own channels only; any other group reads the layer's whole input.
    """

    layer: LayerSpec
    """The layer that it is a part of."""
    channels: tuple[int, ...]
    """Its output channels, ascending."""


def split_layer(layer: LayerSpec, groups: Sequence[Sequence[int]]) -> tuple[LayerSpec, ...]:
    """Cuts a layer into groups of its output channels.

    Args:
        layer: The layer.
        groups: Channels of each group, the most sensitive group first.

    Returns:
        The groups, named ``layer#0``, ``layer#1``, ...; or the layer itself if there is one group only.

    Raises:
        QuantenvError: If a group is empty, or not every channel is in one group, once.
    """
    channels = [tuple(sorted(int(channel) for channel in group)) for group in groups]
    if not all(channels) or sorted(sum(channels, ())) != list(range(layer.out_channels)):
        raise QuantenvError(
            f"The channel groups of layer {layer.name!r} are not a partition of its {layer.out_channels} output "
            "channels: name each channel in one group, once, and leave no group empty."
        )
    return (layer,) if len(channels) == 1 else tuple(_group(layer, *each) for each in enumerate(channels))


def split_layers(layers: Sequence[LayerSpec], channels: Channels) -> tuple[LayerSpec, ...]:
    """Cuts the layers of a network.

    Args:
        layers: Its layers, in execution order.
        channels: Channels of each group, by layer name.

    Returns:
        The groups of each layer in its place; layers that are not named stay whole.

    Raises:
        QuantenvError: If a layer is unknown or its groups are no partition.
    """
    names = [layer.name for layer in layers]
    for name in channels:
        if name not in names:
            raise unknown_name("layer with channel groups:", name, names)
    return tuple(
        part
        for layer in layers
        for part in (split_layer(layer, channels[layer.name]) if layer.name in channels else (layer,))
    )


def whole(layer: LayerSpec) -> LayerSpec:
    """Returns the layer that a group is a part of; a layer is its own."""
    return layer.layer if isinstance(layer, ChannelGroup) else layer


def channels_of(layer: LayerSpec) -> tuple[int, ...]:
    """Returns the output channels of a group; none for a whole layer."""
    return layer.channels if isinstance(layer, ChannelGroup) else ()


def parts_of(layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """Returns which of some layers and groups belong to each whole layer.

    Args:
        layers: Layers and groups.

    Returns:
        Ascending indices of each whole layer's groups, in the order of first occurrence; one index for a whole layer.
    """
    found: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        found.setdefault(whole(layer).name, []).append(index)
    return tuple(map(tuple, found.values()))


def indices_of(name: str, layers: Sequence[LayerSpec]) -> tuple[int, ...]:
    """Returns the indices of the layers that a name stands for: a layer or group, or all groups of a layer.

    Args:
        name: The name of a layer or a group.
        layers: Layers and groups.

    Returns:
        Ascending indices; none if nothing is called that.
    """
    return tuple(index for index, layer in enumerate(layers) if name in (layer.name, whole(layer).name))


def _group(layer: LayerSpec, number: int, channels: tuple[int, ...]) -> ChannelGroup:
    values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(LayerSpec)}
    count, total = len(channels), layer.out_channels
    values |= {
        "name": f"{layer.name}{SEPARATOR}{number}",
        "out_channels": count,
        # The last dimension is a linear layer's features; the first a convolution's channels.
        "output_shape": (
            (*layer.output_shape[:-1], count) if layer.kind == "linear" else (count, *layer.output_shape[1:])
        ),
        "params": layer.params * count // total,
        "bias_params": layer.bias_params * count // total,
        "macs": layer.macs * count // total,
    }
    if layer.depthwise and layer.in_channels == total:
        values |= {"in_channels": count, "groups": count, "input_shape": (count, *layer.input_shape[1:])}
    return ChannelGroup(**values, layer=layer, channels=channels)
