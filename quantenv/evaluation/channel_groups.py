"""How much each output channel harms the network if it is quantized, and the channel groups that follow from it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.evaluation.preparing import calibrate_task
from quantenv.graph.ops import Geometry, geometry_of
from quantenv.quantization.calibration import check_grouping
from quantenv.quantization.formats import quantize
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Task, TaskSource

#: Bits that a channel is quantized to: few, because groups are for tight budgets. Of 2, 3 and 4 bits, 2 led to the best
#: accuracy on the search split on digits, by annealing over 4 groups and by REINFORCE over spreads, at sizes 0.3 and
#: 0.35 (at 0.3: 97, 88 and 94 per cent by annealing; 87, 82 and 79 by REINFORCE).
PROBE_BITS = 2
#: Samples of the calibration split that are used, the first ones, and samples run at once.
SAMPLES, BATCH = 256, 32


def group_channels(task: Task, groups: int | Mapping[str, int], least: int = 1) -> Task:
    """Cuts the layers of a task's network into groups of output channels, which get bits of their own.

    A layer's channels are sorted by `channel_sensitivity`, the most sensitive first, and cut into groups of equal
    numbers of channels, and so of parameters (where they do not divide, the first groups have one channel more).

    Args:
        task: The task, with whole layers.
        groups: Groups of every layer, at least 1, or by layer name; layers that are not named stay whole. A single
            number is an upper bound: a layer has no more groups than channels.
        least: Channels that each group has at least: layers have fewer groups where this takes it.

    Returns:
        The task with channel groups, whose identity is another one; the task itself if every layer stays whole.

    Raises:
        QuantenvError: If a number is out of range, a layer is unknown or has too few channels for the groups that it is
            to have by name, the task has channel groups already, or its scheme cannot have any.
    """
    if task.channel_groups:
        raise QuantenvError(f"Task {task.name!r} has channel groups already: group the task with whole layers.")
    counts = _counts(task, groups, least)
    if not counts:
        return task
    check_grouping(parse_scheme(task.scheme), dict.fromkeys(counts, ()))
    harms = channel_sensitivity(task)
    cut = {name: np.array_split(np.argsort(-harms[name], kind="stable"), count) for name, count in counts.items()}
    channels = {name: tuple(tuple(sorted(part.tolist())) for part in parts) for name, parts in cut.items()}
    return replace(task, channel_groups=channels)


def grouped_as(task: Task, source: TaskSource | None) -> Task:
    """Cuts the layers of a task's network as the user wants it; see `group_channels`."""
    if source is None or source.channel_groups is None:
        return task
    return group_channels(task, source.channel_groups, source.least_channels or 1)


def channel_sensitivity(task: Task) -> dict[str, np.ndarray]:
    """Measures how much the loss minds each output channel's weights being rounded to `PROBE_BITS` bits.

    ``mean over samples of (sum over positions of g * d)**2``, with g the gradient of a sample's cross-entropy in the
    channel's outputs and d what rounding adds to them. It is d^T F d for the empirical Fisher information F of the
    channel's weights, which stands for the Hessian: twice the rise of the loss to second order. The square of a sum of
    gradient times change over a group of parameters is how Molchanov et al. 2019 ("Importance estimation for neural
    network pruning", eq. 8) rate a filter, there for setting it to zero; with rounding in its place it is the Fisher
    sensitivity of Theis et al. 2018 without leaving the products of different weights out.

    It takes one pass forward and one backward over the first `SAMPLES` samples of the calibration split, and one more
    product with each layer's weights.

    Args:
        task: The task; its channel groups, if any, play no part.

    Returns:
        Float64 (output channels,) of each layer, by name.
    """
    calibration = calibrate_task(task)
    split = task.splits["calibration"]
    totals = {layer.name: torch.zeros(layer.out_channels, dtype=torch.double) for layer in calibration.modules}
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # layer, a shift of its output, what rounding adds

    def watch(name: str, change: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            shift = torch.zeros_like(output, requires_grad=True)
            with torch.no_grad():
                calls.append((name, shift, geometry_of(module).run(arguments[0].detach(), change)))
            return output + shift

        return hook

    handles, geometries = [], {}
    for layer in calibration.modules:
        module = calibration.graph.get_submodule(layer.name)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        with torch.no_grad():
            change = quantize(weight, calibration.weight_grids[layer.name][PROBE_BITS]) - weight
        geometries[layer.name] = geometry_of(module)
        handles.append(module.register_forward_hook(watch(layer.name, change)))
    try:
        batches = (values[:SAMPLES].split(BATCH) for values in (split.inputs, split.labels))
        for inputs, labels in zip(*batches, strict=True):
            calls.clear()
            loss = F.cross_entropy(calibration.graph(inputs), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [shift for _, shift, _ in calls])
            of_batch: dict[str, torch.Tensor] = {}
            for (name, _, added), gradient in zip(calls, gradients, strict=True):
                effect = _by_sample(gradient * added, len(labels), geometries[name])
                of_batch[name] = of_batch[name] + effect if name in of_batch else effect
            for name, effect in of_batch.items():
                totals[name] += effect.square().sum(0)
    finally:
        for handle in handles:
            handle.remove()
    count = min(SAMPLES, len(split))
    return {name: (total / count).numpy() for name, total in totals.items()}


def _counts(task: Task, groups: int | Mapping[str, int], least: int) -> dict[str, int]:
    """Returns the number of groups of each layer that has more than one."""
    if least < 1:
        raise QuantenvError(f"Channel groups are to have at least {least} channels; expected a number of at least 1.")
    channels = {layer.name: layer.out_channels for layer in task.layers}
    by_name = isinstance(groups, Mapping)
    wanted = dict(groups) if isinstance(groups, Mapping) else dict.fromkeys(channels, groups)
    for name, count in wanted.items():
        if name not in channels:
            raise unknown_name("layer with channel groups:", name, channels)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise QuantenvError(f"Layer {name!r} is to have {count!r} channel groups; expected a whole number above 0.")
        if by_name and count > 1 and count * least > channels[name]:
            raise QuantenvError(
                f"Layer {name!r} has {channels[name]} output channels, too few for {count} groups of at least {least}."
            )
    counts = {name: min(count, channels[name] // least) for name, count in wanted.items()}
    return {name: count for name, count in counts.items() if count > 1}


def _by_sample(values: torch.Tensor, samples: int, geometry: Geometry) -> torch.Tensor:
    """Sums a layer's outputs over positions: float64 (B, O)."""
    last = geometry.rows(values)
    return last.double().reshape(samples, -1, last.shape[-1]).sum(1)
