"""Batch-norm re-estimation in whole numbers: statistics of a quantized network that are the same on every machine.

A batch norm gives each channel of its outputs a fixed mean and variance. Folded, it does so for the float weights only.
Under quantization its statistics estimated again (Hubara et al. 2020, "Improving post training neural quantization",
batch-norm tuning) amount to a gain and a bias by channel that restore the mean and variance that the float network's
outputs have.

They are measured layer by layer: a layer reads what those before it put out once theirs were restored. What is summed
are the accumulators of integer hardware, whole numbers, and their squares, exactly, over all calibration images. Then
come divisions and a square root, which IEEE 754 rounds correctly. So neither the order of sums nor what computes the
accumulators changes a bit, nor how many images are run at once, nor which other allocations are. (Where operations that
stay in float, such as a sigmoid or an average, lie in front of a batch norm, their arithmetic has its say.)
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from quantenv.backends.integer_layer import IntegerLayer
from quantenv.backends.program import Program, later, starts
from quantenv.quantization.corrections import EPSILON
from quantenv.quantization.switched import Bits, ChannelMap, Switched

#: Values of the network's largest stored tensor that are run at once: of ResNet-20, 32 images.
CHUNK = 1 << 19
#: Accumulators whose squares are summed at once: each is at most 2**48, and their sum stays below 2**63.
SQUARES = 1 << 14
_LOW = 32

_numbers = itertools.count()


class ChannelSums:
    """Sums of whole numbers and of their squares by channel, exact."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum, self._high, self._low = (torch.zeros(channels, dtype=torch.int64) for _ in range(3))

    def add(self, numbers: torch.Tensor) -> None:
        """Adds whole numbers of at most 2**24 in size, float32 (N, O)."""
        for rows in numbers.split(SQUARES):
            whole = rows.to(torch.int64)
            self._sum += whole.sum(0)
            squares = whole.mul_(whole).sum(0)
            self._high += squares >> _LOW  # apart, so that no number of images overflows
            self._low += squares & ((1 << _LOW) - 1)
        self.count += len(numbers)

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean and the variance by channel, float64 (O,)."""
        mean = self._sum.double() / self.count
        squares = (self._high.double() * 2.0**_LOW + self._low.double()) / self.count
        return mean, (squares - mean.square()).clamp_(min=0)


def restored(layer: IntegerLayer, sums: ChannelSums, unit: torch.Tensor) -> ChannelMap:
    """Makes a layer's outputs have the float network's mean and variance.

    Args:
        layer: The layer, whose moments say what is wanted.
        sums: Of its accumulators.
        unit: What an accumulator of 1 stands for, float64 (O,).

    Returns:
        What that does to its outputs.
    """
    assert layer.moments is not None
    wanted_mean, wanted_variance = (moment.double() for moment in layer.moments)
    mean, variance = sums.mean_and_variance()
    slack = EPSILON * wanted_variance
    total = variance * unit.square() + slack
    ratio = (wanted_variance + slack) / torch.where(total > 0, total, 1.0)
    gain = torch.where(total > 0, ratio.sqrt(), 1.0)
    bias = wanted_mean - gain * unit * mean
    return ChannelMap(next(_numbers), gain.float(), bias.float())


class Reestimation:
    """Estimates the batch norms of a quantized network again, under many allocations that share what they can.

    Whoever runs it keeps other threads from doing so at the same time.

    Args:
        module: The network on whole numbers, of `IntegerLayer` that know the moments to restore.
        inputs: Calibration inputs, (N, ...).
        chunk: How many are run at once.
    """

    def __init__(self, module: fx.GraphModule, inputs: torch.Tensor, chunk: int) -> None:
        self._program, self._inputs, self._chunk = Program(module), inputs, chunk
        self._latest: tuple[list[Bits], list[Mapping[str, ChannelMap]]] = [], []
        modules = [self._program.steps[index].function for index in self._program.switched]
        self._restored = {
            index: each
            for index, each in enumerate(modules)
            if isinstance(each, IntegerLayer) and each.moments is not None
        }
        last = max(self._restored)  # what follows the last one changes no statistics
        self._switched = [each for each in modules[: last + 1] if isinstance(each, Switched)]

    @torch.no_grad()
    def maps(self, allocations: Sequence[Bits]) -> list[Mapping[str, ChannelMap]]:
        """Estimates statistics under allocations.

        Args:
            allocations: Bits of all layers.

        Returns:
            For each, what re-estimation does to the outputs of the layers that batch norms were folded into, by name.
            Allocations that agree up to a layer, in what its statistics depend on, have the same object there. The same
            allocations again, to be evaluated on another split, get the same maps.
        """
        if self._latest[0] != list(allocations):
            self._latest = list(allocations), self._estimated(allocations)
        return self._latest[1]

    def _estimated(self, allocations: Sequence[Bits]) -> list[Mapping[str, ChannelMap]]:
        settings = [tuple(module.setting(bits) for module in self._switched) for bits in allocations]
        order = sorted(range(len(settings)), key=settings.__getitem__)
        first = starts([settings[index] for index in order])
        ahead = later(first)
        kept: dict[int, list[list[Any]]] = {}  # registers of all chunks in front of switched modules
        found: dict[int, ChannelMap] = {}
        result: list[Mapping[str, ChannelMap]] = [{}] * len(settings)
        chunks = [self._program.registers(part) for part in self._inputs.split(self._chunk)]
        for index, start, wanted in zip(order, first, ahead, strict=True):
            if start is not None:
                position = 0
                if found:
                    chunks, position = kept.pop(start), self._program.switched[start]
                for module, setting in zip(self._switched[start:], settings[index][start:], strict=True):
                    module.select(setting)
                found = {module: each for module, each in found.items() if module < start}
                self._run(chunks, position, wanted, kept, found)
            result[index] = {self._restored[module].name: each for module, each in found.items()}
        return result

    def _run(
        self,
        chunks: list[list[Any]],
        position: int,
        wanted: set[int],
        kept: dict[int, list[list[Any]]],
        found: dict[int, ChannelMap],
    ) -> None:
        """Runs all chunks from a step on and adds to what is `found`; keeps registers in front of `wanted` modules."""
        unkept = position
        for module, layer in self._restored.items():
            stop = self._program.switched[module]
            if stop < position:
                continue
            sums = None
            stops = [each for each in sorted(wanted) if unkept <= self._program.switched[each] <= stop]
            for registers in chunks:
                reached = position
                for each in stops:
                    self._program.run(registers, reached, reached := self._program.switched[each])
                    kept.setdefault(each, []).append(registers.copy())
                self._program.run(registers, reached, stop)
                (held,) = self._program.arguments(registers, stop)
                numbers, unit = layer.sums(held)
                sums = sums or ChannelSums(numbers.shape[1])
                sums.add(numbers)
            assert sums is not None
            found[module] = restored(layer, sums, unit)
            layer.settle(found[module])
            position, unkept = stop, stop + 1
