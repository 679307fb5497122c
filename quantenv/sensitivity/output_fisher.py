"""The harm of rounding by one gradient: squared errors of layer outputs, weighted by their Fisher information."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.evaluation.preparing import calibrate_task
from quantenv.graph.ops import geometry_of
from quantenv.quantization.formats import quantize
from quantenv.sensitivity.deviations import Deviation
from quantenv.sensitivity.kinds import PARTS
from quantenv.tasks import Task

#: Samples run at once: every layer's input, output and gradient is held until the batch's gradient is known.
BATCH = 32
#: Added to variances that are matched, as a share of the float network's.
EPSILON = 1e-5


class OutputFisher:
    """Measures on the folded float network, with the first samples of the search split.

    ``mean over samples of sum_j (g_j (y_q - y)_j)**2``, with y what a layer puts out, y_q what it puts out on the same
    input when its weights or that input are rounded, and g the gradient in y of the cross-entropy of a sample's label.
    Half of it is what the loss rises by if the empirical Fisher information of y stands for its Hessian and its
    diagonal for all of it. It is how NVIDIA's ModelOpt scores formats by default
    (`modelopt.torch.quantization.auto_quantize`, ``method="gradient"``: the sum of ``grad_output ** 2 * output_diff **
    2``); there, weights and input are rounded together.

    All layers are measured by one pass forward and one backward, and each deviation by one more call of its layer. What
    the scheme does after rounding is in y_q: the corrected bias, and batch-norm statistics estimated again, here on the
    batch.

    Args:
        task: The task.
        images: Samples to use, the first ones.
    """

    def __init__(self, task: Task, images: int) -> None:
        self._calibration = calibrate_task(task)
        split = task.splits["search"]
        self._inputs, self._labels = split.inputs[:images], split.labels[:images]

    def measure(self, wanted: Sequence[Deviation]) -> list[float]:
        """Measures deviations, each against the float network."""
        calibration = self._calibration
        places = {index: name for name, indices in calibration.indices.items() for index in indices}
        totals = [0.0] * len(wanted)
        calls: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}  # input, output, shift of the output

        def watch(name: str) -> Callable[..., torch.Tensor]:
            def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
                shift = torch.zeros_like(output, requires_grad=True)
                calls[name] = arguments[0].detach().clone(), output.detach().clone(), shift
                return output + shift

            return hook

        for deviation in wanted:  # what is measured or learned on first use runs the graph, which is not watched yet
            if deviation.part == PARTS[0]:
                name = places[deviation.layers[0]]
                calibration.bias(name, deviation.bits)
        handles = [calibration.graph.get_submodule(name).register_forward_hook(watch(name)) for name in places.values()]
        try:
            batches = (values.split(BATCH) for values in (self._inputs, self._labels))
            for inputs, labels in zip(*batches, strict=True):
                calls.clear()
                loss = F.cross_entropy(calibration.graph(inputs), labels, reduction="sum")
                gradients = torch.autograd.grad(loss, [shift for *_, shift in calls.values()])
                squares = {name: gradient.square() for name, gradient in zip(calls, gradients, strict=True)}
                for index, deviation in enumerate(wanted):
                    name = places[deviation.layers[0]]
                    moved = self._moved(name, deviation, *calls[name][:2])
                    totals[index] += float((squares[name] * moved.square()).sum(dtype=torch.double))
        finally:
            for handle in handles:
                handle.remove()
        return [total / len(self._labels) for total in totals]

    @torch.no_grad()
    def _moved(self, name: str, deviation: Deviation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns y_q - y of one layer."""
        calibration = self._calibration
        layer: Any = calibration.graph.get_submodule(name)
        geometry, weight, bias = geometry_of(layer), layer.weight, layer.bias
        if deviation.part == PARTS[0]:
            weight = calibration.rounded(name, deviation.bits)
            bias = calibration.bias(name, deviation.bits)
        else:
            x = quantize(x, calibration.site_grids[calibration.site_of(name).node][deviation.bits])
        rounded, channels = geometry.run(x, weight, bias), geometry.channels
        if calibration.scheme.batch_norm and name in calibration.normalised:
            rounded = _matched(rounded, y, channels)
        moved = rounded - y
        groups = calibration.channels[name]
        if not groups or deviation.part != PARTS[0]:
            return moved
        own = groups[calibration.indices[name].index(deviation.layers[0])]
        return torch.zeros_like(moved).index_copy_(channels, own, moved.index_select(channels, own))


def _matched(rounded: torch.Tensor, wanted: torch.Tensor, channels: int) -> torch.Tensor:
    """Gives each channel of some outputs the mean and the variance that it is to have."""
    others = [dim for dim in range(wanted.dim()) if dim != channels % wanted.dim()]
    variance, mean = torch.var_mean(wanted, others, correction=0, keepdim=True)
    own_variance, own_mean = torch.var_mean(rounded, others, correction=0, keepdim=True)
    slack = EPSILON * variance
    total = own_variance + slack
    gain = torch.where(total > 0, ((variance + slack) / total.where(total > 0, 1.0)).sqrt(), 1.0)
    return (rounded - own_mean) * gain + mean
