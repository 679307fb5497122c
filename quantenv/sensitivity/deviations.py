"""What the outputs do when one layer alone leaves 8 bits, by the route that evaluations take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.layers import LayerSpec
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.sensitivity.kinds import PARTS

#: Kinds that one pass over the outputs gives, in the order of its numbers.
OUTPUT_KINDS = ("accuracy", "loss", "kl", "sqnr")
#: Deviations that are measured together at least, where there are as many. They share what is before the first layer
#: that deviates, which each further call computes again: with 8, on average a sixteenth of all work.
TOGETHER = 8


@dataclass(frozen=True)
class Deviation:
    """8 bits everywhere but in one place."""

    layers: tuple[int, ...]
    """The layer; or, for activations, all channel groups of one layer, which read the same."""
    part: str
    """One of `PARTS`."""
    bits: int
    """Bits there, 1-7."""

    def allocation(self, layers: Sequence[LayerSpec]) -> Allocation:
        """Returns it as an allocation of a network's layers."""
        bits = {part: [MAX_BITS] * len(layers) for part in PARTS}
        for index in self.layers:
            bits[self.part][index] = self.bits
        return Allocation.make(layers, bits[PARTS[0]], bits[PARTS[1]])

    def name(self, layers: Sequence[LayerSpec]) -> str:
        """Says what it is, by the name of its layer: unique within a network."""
        layer = layers[self.layers[0]]
        return f"{self.part} of {(layer if self.part == PARTS[0] else whole(layer)).name} at {self.bits} bits"


def deviations(layers: Sequence[LayerSpec], offered: np.ndarray) -> list[Deviation]:
    """Lists the deviations that tell the harm of bits on offer, in the order of the layers.

    Args:
        layers: The network's layers, length L.
        offered: Which bits each layer may have, bool (2, L, 8) = [part, layer, bits - 1].
    """
    result = []
    for together in parts_of(layers):
        places = [(PARTS[0], (index,)) for index in together] + [(PARTS[1], together)]
        for part, indices in places:
            wanted = offered[PARTS.index(part), list(indices), : MAX_BITS - 1].any(axis=0)
            result += [Deviation(indices, part, int(bits) + 1) for bits in np.flatnonzero(wanted)]
    return result


def in_blocks(wanted: Sequence[Deviation]) -> list[list[Deviation]]:
    """Cuts deviations, in the order of the layers, into blocks of whole layers that are measured together."""
    blocks: list[list[Deviation]] = []
    for deviation in wanted:
        last = blocks[-1][-1] if blocks else None
        same_layer = last is not None and set(last.layers) & set(deviation.layers)
        if last is None or (len(blocks[-1]) >= TOGETHER and not same_layer):
            blocks.append([])
        blocks[-1].append(deviation)
    return blocks


class Outputs:
    """Measures what deviations do to the outputs, as the evaluator computes them.

    Args:
        evaluator: The evaluator; its task's search split is used.
        images: Samples to use, the first ones; None is all.
    """

    def __init__(self, evaluator: PTQEvaluator, images: int | None) -> None:
        self._evaluator = evaluator
        split = evaluator.task.splits["search"]
        self._inputs, self._labels = split.inputs[:images], split.labels[:images]
        with torch.inference_mode():
            batches = self._inputs.split(evaluator.batch)
            self._float = torch.cat([evaluator.task.network(batch) for batch in batches]).double()

    def base(self) -> list[float]:
        """Measures 8 bits everywhere: the numbers of `OUTPUT_KINDS`."""
        return self._measure([Allocation.make(self._evaluator.layers, MAX_BITS, MAX_BITS)])[0]

    def measure(self, wanted: Sequence[Deviation]) -> list[list[float]]:
        """Measures deviations: for each the numbers of `OUTPUT_KINDS`."""
        return self._measure([deviation.allocation(self._evaluator.layers) for deviation in wanted])

    def _measure(self, allocations: list[Allocation]) -> list[list[float]]:
        logits = all_logits(self._evaluator, allocations, self._inputs)
        return [output_measures(each.double(), self._float, self._labels) for each in logits]


def all_logits(evaluator: PTQEvaluator, allocations: Sequence[Allocation], inputs: torch.Tensor) -> torch.Tensor:
    """Returns the logits of many allocations on some samples, (allocations, samples, classes)."""
    batches: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(allocations))}
    for indices, _, logits in evaluator.logits(allocations, inputs):
        for index, values in zip(indices, logits, strict=True):
            batches[index].append(values)
    return torch.stack([torch.cat(values) for values in batches.values()])


def output_measures(logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Compares a quantized network's outputs with the float network's.

    Args:
        logits: Of the quantized network, float64 (N, classes).
        reference: Of the float network, float64 (N, classes).
        labels: Class indices, int64 (N,).

    Returns:
        In the order of `OUTPUT_KINDS`: the share of wrong predictions; the mean cross-entropy in nats; the mean of
        KL(p_float || p_quantized) in nats (Cai et al. 2020, ZeroQ, eq. 6); and
        ``sum (z - z_float)**2 / sum z_float**2``, the reciprocal of the SQNR of the network's outputs (Pandey et al.
        2023, "A practical mixed precision algorithm for post-training quantization"). The reciprocals of independent
        noises add up (Lin et al. 2016, "Fixed point quantization of deep convolutional networks"), decibels do not.
    """
    with torch.inference_mode():
        wrong = (logits.argmax(1) != labels).double().mean()
        log_p, log_q = F.log_softmax(reference, 1), F.log_softmax(logits, 1)
        loss = F.nll_loss(log_q, labels)
        # KL of distributions that are equal to the last digits may come out as -1e-17
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).clamp(min=0)
        noise = (logits - reference).square().sum() / reference.square().sum().clamp(min=torch.finfo(torch.double).tiny)
    return [float(wrong), float(loss), float(divergence), float(noise)]
