"""What is known of a quantizable layer. No torch: environments over tables know their layers without a network."""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "depthwise", "transposed", "linear"]


@dataclass(frozen=True)
class LayerSpec:
    """What cost tables and observations need to know of one quantizable layer.

    Sizes are per sample (no batch dimension).
    """

    name: str
    """Module path inside the network, as in ``named_modules()``: the layer's identity."""
    kind: Kind
    """``conv``, ``depthwise`` (a convolution with as many groups as input channels, more than one), ``transposed`` (a
    convolution that spreads each input place over a kernel) or ``linear``."""
    in_channels: int
    """Input channels, or input features of a linear layer."""
    out_channels: int
    """Output channels, or output features of a linear layer."""
    kernel_size: tuple[int, ...]
    """Kernel size by spatial dimension, height and width of images; (1, 1) for a linear layer."""
    stride: tuple[int, ...]
    """Stride by spatial dimension; (0, 0) for a linear layer, as in HAQ's state vector."""
    groups: int
    """Convolution groups; 1 for a linear layer."""
    input_shape: tuple[int, ...]
    """Shape of the layer's input, (C, H, W) for convolutions."""
    output_shape: tuple[int, ...]
    """Shape of the layer's output."""
    params: int
    """Quantized weights: elements of ``weight``, without the bias."""
    bias_params: int
    """Bias elements once batch norms are folded: one per output channel of every convolution."""
    macs: int
    """Multiply-accumulate operations for one sample, summed over calls if the layer runs more than once."""

    @property
    def input_elements(self) -> int:
        """Elements of the layer's input for one sample."""
        return math.prod(self.input_shape)

    @property
    def output_elements(self) -> int:
        """Elements of the layer's output for one sample."""
        return math.prod(self.output_shape)

    @property
    def depthwise(self) -> bool:
        """Whether the layer is a depthwise convolution."""
        return self.kind == "depthwise"
