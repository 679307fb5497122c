"""The registry of layers that can be quantized: one entry says all that is known of a kind of layer.

A layer multiplies its input by weights of shape (O, I / G, ...): output channels, input channels of a group, places in
the kernel. Costs, sensitivities, rounding, training and both backends ask here and nowhere else what kind of layer it
is. Where torch lays weights out otherwise, as in transposed convolutions, tracing puts a `Canonical` in its place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Batch norms, which are folded into the layer before them.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class LayerOp:
    """What a kind of layer is."""

    module: type[nn.Module]
    """torch's module."""
    function: Callable[..., torch.Tensor]
    """What runs it: called with the input, weights, bias, stride, padding, dilation and groups; for layers without
    spatial dimensions, with the first three."""
    dims: int
    """Spatial dimensions of its input (B, C, ...); 0 if channels come last, (B, ..., F)."""
    norm: type[nn.Module]
    """The batch norm of its outputs."""
    transposed: bool = False
    """Whether each input place is spread over a kernel, instead of each output place gathering one: torch's weights
    are (I, O / G, ...)."""


#: Every kind, by torch's module.
OPS: dict[type[nn.Module], LayerOp] = {
    op.module: op
    for op in (
        LayerOp(nn.Linear, F.linear, 0, nn.BatchNorm1d),
        LayerOp(nn.Conv1d, F.conv1d, 1, nn.BatchNorm1d),
        LayerOp(nn.Conv2d, F.conv2d, 2, nn.BatchNorm2d),
        LayerOp(nn.Conv3d, F.conv3d, 3, nn.BatchNorm3d),
        LayerOp(nn.ConvTranspose1d, F.conv_transpose1d, 1, nn.BatchNorm1d, transposed=True),
        LayerOp(nn.ConvTranspose2d, F.conv_transpose2d, 2, nn.BatchNorm2d, transposed=True),
        LayerOp(nn.ConvTranspose3d, F.conv_transpose3d, 3, nn.BatchNorm3d, transposed=True),
    )
}


@dataclass(frozen=True)
class Geometry:
    """How a layer multiplies its input by its weights."""

    op: LayerOp
    """Its kind."""
    stride: tuple[int, ...] = ()
    """By spatial dimension, as what follows."""
    padding: tuple[int, ...] = ()
    """Zeros on both sides."""
    dilation: tuple[int, ...] = ()
    """Distance of neighbouring places in the kernel."""
    groups: int = 1
    """Groups of channels that are multiplied by themselves."""
    output_padding: tuple[int, ...] = ()
    """Of a transposed convolution."""

    @property
    def shape(self) -> tuple[int, ...]:
        """What one value for each output channel is viewed as, to go with outputs."""
        return (-1,) + (1,) * self.op.dims

    @property
    def channels(self) -> int:
        """The dimension of channels in inputs and outputs."""
        return 1 if self.op.dims else -1

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Returns inputs or outputs with their channels last."""
        return values.movedim(1, -1) if self.op.dims else values

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiplies.

        Args:
            x: Input, (B, C, ...), or (B, ..., F) without spatial dimensions.
            weight: Weights, (O, I / G, ...).
            bias: Bias, (O,).

        Returns:
            The output, (B, O, ...) or (B, ..., O).
        """
        op = self.op
        if not op.dims:
            return op.function(x, weight, bias)
        if op.transposed:
            weight = _exchanged(weight, self.groups)
            return op.function(
                x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        return op.function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Canonical(nn.Module):
    """A layer whose weights torch lays out otherwise, with weights of shape (O, I / G, ...).

    Args:
        layer: The layer; not changed.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.geometry, bias = geometry_of(layer), layer.bias
        self.weight = nn.Parameter(canonical_weight(layer).detach().clone(), layer.weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, ...)."""
        return self.geometry.run(x, self.weight, self.bias)


#: Layers as torch has them, for `isinstance`; and as graphs of `quantenv.graph.tracing` hold them.
MODULES: tuple[type[nn.Module], ...] = tuple(OPS)
LAYERS: tuple[type[nn.Module], ...] = (*MODULES, Canonical)


def op_of(layer: nn.Module) -> LayerOp:
    """Returns a layer's kind.

    Raises:
        TypeError: If it cannot be quantized.
    """
    if isinstance(layer, Canonical):
        return layer.geometry.op
    for kind, op in OPS.items():
        if isinstance(layer, kind):
            return op
    raise TypeError(f"A {type(layer).__name__} is no layer that can be quantized: {', '.join(map(_name, OPS))} are.")


def geometry_of(layer: Any) -> Geometry:
    """Returns how a layer multiplies; its padding is zeros.

    Raises:
        TypeError: If it cannot be quantized.
        ValueError: If it pads its sides unequally, as ``padding="same"`` may: tracing makes that a step of its own.
    """
    op = op_of(layer)
    if isinstance(layer, Canonical):
        return layer.geometry
    if not op.dims:
        return Geometry(op)
    stride, dilation = by_dimension(layer.stride, op.dims), by_dimension(layer.dilation, op.dims)
    padding = layer.padding
    if padding == "same":
        both = [step * (size - 1) for size, step in zip(layer.kernel_size, dilation, strict=True)]
        if any(width % 2 for width in both):
            raise ValueError(f"padding='same' of a kernel {tuple(layer.kernel_size)} pads its sides unequally.")
        padding = tuple(width // 2 for width in both)
    elif padding == "valid":
        padding = 0
    return Geometry(
        op, stride, by_dimension(padding, op.dims), dilation, layer.groups, by_dimension(layer.output_padding, op.dims)
    )


def canonical_weight(layer: Any) -> torch.Tensor:
    """Returns a layer's weights as (O, I / G, ...)."""
    weight: torch.Tensor = layer.weight
    if isinstance(layer, Canonical) or not op_of(layer).transposed:
        return weight
    return _exchanged(weight, layer.groups)


def macs(layer: Any, inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """Returns the multiply-accumulate operations of one call.

    Args:
        layer: The layer, as torch has it.
        inputs: Shape of its input for one sample.
        outputs: Shape of its output for one sample.
    """
    op = op_of(layer)
    if not op.dims:
        return math.prod(outputs) * layer.in_features
    kernel = math.prod(layer.kernel_size)
    if op.transposed:
        return math.prod(inputs) * kernel * layer.out_channels // layer.groups
    return math.prod(outputs) * kernel * layer.in_channels // layer.groups


def _name(kind: type[nn.Module]) -> str:
    return kind.__name__


def by_dimension(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Returns a setting, such as a stride, for each spatial dimension."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _exchanged(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Exchanges input and output channels within each group: (I, O / G, ...) becomes (O, I / G, ...), and back."""
    of_group = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return of_group.flatten(0, 1)
