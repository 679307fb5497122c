"""What the outputs do when one layer alone leaves 8 bits."""

import numpy as np
import torch
import torch.nn.functional as F

from quantenv.allocation import Allocation
from quantenv.channel_groups import parts_of
from quantenv.quantize import PrefixRunner, QuantizedNetwork, calibrate_task
from quantenv.sensitivity.float_layers import PARTS
from quantenv.tasks import Task

#: Kinds that one pass over the outputs gives, in the order of its numbers.
OUTPUT_KINDS = ("accuracy", "loss", "kl", "sqnr")
#: Bits of a deviation: all but 8, which is the network that is deviated from.
DEVIATIONS = range(1, 8)
#: Bytes of the largest stored tensor of a batch, as in evaluations: larger ones leave the processor's caches.
BATCH_BYTES = 4 << 20


class Deviations:
    """Measures networks with 8-bit weights and activations everywhere but in one place, in float arithmetic.

    Args:
        task: The task; its search split is used.
        images: Samples to use, the first ones; None is all.
    """

    def __init__(self, task: Task, images: int | None = None) -> None:
        self._network = QuantizedNetwork(calibrate_task(task))
        self._runner = PrefixRunner(self._network)
        self._layers = task.layers
        self._parts = {index: part for part in parts_of(task.layers) for index in part}
        self._of_inputs: dict[tuple[int, ...], list[list[float]]] = {}
        split = task.splits["search"]
        largest = max(site.features for site in self._network.calibration.sites)
        batch = max(1, BATCH_BYTES // (self._network.value_bytes * largest))
        self._inputs = split.inputs[:images].split(batch)
        self._labels = split.labels[:images]
        with torch.inference_mode():
            self._float = torch.cat([task.network(inputs) for inputs in self._inputs]).double()

    def base(self) -> list[float]:
        """Measures 8 bits everywhere: the numbers of `OUTPUT_KINDS`."""
        return self._measure([Allocation.make(self._layers, 8, 8)])[0]

    def layer(self, index: int) -> dict[str, list[list[float]]]:
        """Measures every deviation of one layer; of a channel group's activations, which are its layer's, once only.

        Returns:
            For ``weights`` and ``activations`` the numbers of `OUTPUT_KINDS` at each of `DEVIATIONS`.
        """
        together = self._parts[index]
        allocations = []
        for deviating in ([index], together)[: 1 if together in self._of_inputs else 2]:
            for bits in DEVIATIONS:
                weights, activations = [[8] * len(self._layers) for _ in PARTS]
                for layer in deviating:
                    (activations if deviating is together else weights)[layer] = bits
                allocations.append(Allocation.make(self._layers, weights, activations))
        rows = self._measure(allocations)
        of_weights = rows[: len(DEVIATIONS)]
        self._of_inputs.setdefault(together, rows[len(DEVIATIONS) :])
        return dict(zip(PARTS, (of_weights, self._of_inputs[together]), strict=True))

    def _measure(self, allocations: list[Allocation]) -> list[list[float]]:
        settings = [self._network.settings(allocation) for allocation in allocations]
        order = sorted(range(len(settings)), key=settings.__getitem__)
        outputs: list[list[torch.Tensor]] = [[] for _ in settings]
        for inputs in self._inputs:
            logits = self._runner.run(inputs, [settings[index] for index in order])
            for index, values in zip(order, logits, strict=True):
                outputs[index].append(values)
        return [output_measures(torch.cat(values).double(), self._float, self._labels) for values in outputs]


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


def raw_measures(base: list[float], layers: list[dict[str, list[list[float]]]], kind: str, part: str) -> np.ndarray:
    """Puts one kind's numbers into an array, float64 (L, 8) = [layer, bits - 1]."""
    position = OUTPUT_KINDS.index(kind)
    return np.array([[row[position] for row in layer[part]] + [base[position]] for layer in layers])
