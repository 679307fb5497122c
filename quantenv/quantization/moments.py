"""Second moments of what a layer's weights are multiplied by: all that AdaRound needs to know of the inputs."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

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
                total += 4 * _groups(self._module(name)) * _size(self._module(name)) ** 2
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
        layer: A Conv2d or Linear.
        inputs: What it reads, (B, C, H, W) or (B, ..., F).
        most: How many places at most.

    Returns:
        Shape (G, K, places), as weights (O, K) of G groups are laid out.
    """
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[spread(torch.arange(len(rows)), most)].T[None]
    assert isinstance(layer, nn.Conv2d)
    inputs = F.pad(inputs, layer._reversed_padding_repeated_twice)  # torch's own: also of "same" and "valid"
    high, wide = layer.kernel_size
    down, right = layer.stride
    far, long = layer.dilation
    lines = (inputs.shape[2] - far * (high - 1) - 1) // down + 1
    columns = (inputs.shape[3] - long * (wide - 1) - 1) // right + 1
    chosen = spread(torch.arange(len(inputs) * lines * columns), most)
    sample, place = chosen // (lines * columns), chosen % (lines * columns)
    y = (place // columns * down)[:, None, None] + far * torch.arange(high)[:, None]
    x = (place % columns * right)[:, None, None] + long * torch.arange(wide)
    taken = inputs[sample[:, None, None], :, y, x]  # (places, kernel, kernel, C)
    return taken.permute(3, 1, 2, 0).reshape(layer.groups, -1, len(chosen))


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _size(layer: nn.Module) -> int:
    """Weights of an output channel."""
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight[0].numel()
