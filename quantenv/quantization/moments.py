"""Second moments of what a layer's weights are multiplied by: all that AdaRound needs to know of the inputs."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.graph.ops import Geometry, geometry_of
from quantenv.quantization.ranges import spread

if TYPE_CHECKING:
    from quantenv.quantization.calibration import Calibration

#: Calibration inputs run at once.
BATCH = 64
#: Places of a layer's input that are taken, over all calibration inputs. On ResNet-20 all places of 128 or 512 inputs,
#: 2**13 to 2**19, gave the same accuracies within their standard error.
MOST_PATCHES = 1 << 15
#: Bytes of the moments that are kept at once.
KEPT_BYTES = 1 << 28
#: Added to the diagonal, as a share of its mean, as in GPTQ (Frantar et al. 2023, section 3.3): what few samples leave
#: undetermined then changes little.
DAMPING = 0.01


class InputMoments:
    """Measures the moments of as many layers as memory holds in one pass through the float network.

    Args:
        calibration: The calibrated network.
    """

    def __init__(self, calibration: "Calibration") -> None:
        self._calibration = calibration
        self._kept: dict[str, torch.Tensor] = {}

    def of(self, layer: str) -> torch.Tensor:
        """Returns a layer's second moments, (G, K, K), damped.

        They are about the mean where the scheme puts the mean of the layer's outputs right.
        """
        if layer not in self._kept:
            names = [each.name for each in self._calibration.modules]
            together: list[str] = []
            total = 0
            for name in names[names.index(layer) :]:
                total += 4 * geometry_of(self._module(name)).groups * _size(self._module(name)) ** 2
                if together and total > KEPT_BYTES:
                    break
                together.append(name)
            self._kept = self._measure(together)
        return self._kept[layer]

    def _module(self, name: str) -> nn.Module:
        return self._calibration.graph.get_submodule(name)

    def _measure(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        calibration = self._calibration
        squares: dict[str, torch.Tensor] = dict.fromkeys(names, torch.zeros(()))
        sums: dict[str, torch.Tensor] = dict.fromkeys(names, torch.zeros(()))
        counts = dict.fromkeys(names, 0)
        batches = calibration.inputs.split(BATCH)
        most = MOST_PATCHES // len(batches)

        def record(name: str) -> torch.utils.hooks.RemovableHandle:
            def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                seen = patches(module, arguments[0], most)
                squares[name] = squares[name] + torch.bmm(seen, seen.transpose(1, 2))
                sums[name] = sums[name] + seen.sum(2)
                counts[name] += seen.shape[2]

            return self._module(name).register_forward_hook(hook)

        handles = [record(name) for name in names]
        try:
            with torch.no_grad():
                for batch in batches:
                    calibration.graph(batch)
        finally:
            for handle in handles:
                handle.remove()
        result = {}
        for name in names:
            moments, mean = squares[name] / counts[name], sums[name] / counts[name]
            if mean_is_corrected(calibration, name):
                moments = moments - mean[:, :, None] * mean[:, None, :]
            diagonal = torch.diagonal(moments, dim1=1, dim2=2)
            diagonal += DAMPING * diagonal.mean(1, keepdim=True)
            result[name] = moments
        return result


def mean_is_corrected(calibration: "Calibration", layer: str) -> bool:
    """Whether the scheme puts the mean of a layer's outputs right, whatever its weights are rounded to."""
    scheme = calibration.scheme
    return scheme.bias or (scheme.batch_norm and layer in calibration.normalised)


def patches(layer: nn.Module, inputs: torch.Tensor, most: int) -> torch.Tensor:
    """Returns what the weights of an output channel are multiplied by, at places spread over inputs and positions.

    Args:
        layer: A layer.
        inputs: What it reads, (B, C, ...), or (B, ..., F) of a linear layer.
        most: How many places at most.

    Returns:
        Shape (G, K, places), as weights (O, K) of G groups are laid out.
    """
    geometry, weight = geometry_of(layer), layer.weight
    assert isinstance(weight, torch.Tensor)
    if not geometry.op.dims:
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[spread(torch.arange(len(rows)), most)].T[None]
    kernel, dims = weight.shape[2:], range(geometry.op.dims)
    if geometry.op.transposed:
        inputs, stride = _spread_out(inputs, geometry, kernel), (1,) * len(dims)
    else:
        inputs, stride = F.pad(inputs, [each for each in reversed(geometry.padding) for _ in range(2)]), geometry.stride
    sizes = [
        (inputs.shape[2 + dim] - geometry.dilation[dim] * (kernel[dim] - 1) - 1) // stride[dim] + 1 for dim in dims
    ]
    chosen = spread(torch.arange(len(inputs) * math.prod(sizes)), most)
    sample, *places = torch.unravel_index(chosen, (len(inputs), *sizes))
    taken = []
    for dim in dims:
        offsets = geometry.dilation[dim] * torch.arange(kernel[dim])
        offsets = offsets.flip(0) if geometry.op.transposed else offsets
        place = (places[dim] * stride[dim]).view(-1, *(1 for _ in dims))
        taken.append(place + offsets.view(*(-1 if each == dim else 1 for each in dims)))
    seen = inputs.movedim(1, -1)[(sample.view(-1, *(1 for _ in dims)), *taken)]  # (places, kernel ..., C)
    return seen.movedim(0, -1).movedim(-2, 0).reshape(geometry.groups, -1, len(chosen))


def _spread_out(inputs: torch.Tensor, geometry: Geometry, kernel: Sequence[int]) -> torch.Tensor:
    """Returns the input, (B, C, ...), that a convolution of stride 1 with the flipped kernel reads to do the same."""
    sizes = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], geometry.stride, strict=True)]
    wide = inputs.new_zeros(*inputs.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, stride) for stride in geometry.stride))] = inputs
    border: list[int] = []
    for size, dilation, padding, more in zip(
        kernel, geometry.dilation, geometry.padding, geometry.output_padding, strict=True
    ):
        before = dilation * (size - 1) - padding
        border = [before, before + more, *border]
    return F.pad(wide, border)


def _size(layer: nn.Module) -> int:
    """Weights of an output channel."""
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight[0].numel()
