"""The post-training evaluator: one prepared network, allocations swapped in, in float or integer arithmetic."""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from quantenv.activations import Activations
from quantenv.allocation import Allocation, fitting
from quantenv.errors import QuantenvError, unknown_name
from quantenv.evaluate.base import Evaluation
from quantenv.files import content_hash
from quantenv.quantize import PrefixRunner, QuantizedNetwork, calibrate_task, parse_scheme
from quantenv.quantize.activations import activations_of
from quantenv.quantize.calibration import Calibration
from quantenv.quantize.integer import IntegerNetwork, integer_obstacle
from quantenv.quantize.verification import check_kernels
from quantenv.tasks import Split, Task

logger = logging.getLogger(__name__)

#: Bytes of a network's largest stored tensor for one batch, by backend: larger batches leave the processor's caches. On
#: ResNet-20, 1,000 images at once take 1.6 times as long as batches of 64 in float arithmetic; on int8 kernels, whose
#: other costs are fewer, batches of 256 take 1.15 times as long as batches of 128.
BATCH_BYTES = {"float": 4 << 20, "integer": 2 << 20}
#: Allocations whose logits are tallied together.
GROUP = 64
#: Backends by name.
BACKENDS: dict[str, type[QuantizedNetwork]] = {"float": QuantizedNetwork, "integer": IntegerNetwork}


class PTQEvaluator:
    """Evaluates allocations after post-training quantization.

    Batch norms are folded, inputs and weights are channels-last, and the quantized weights of every bit-width are
    kept, so that changing the allocation copies nothing. Threads may share an evaluator.

    Args:
        task: The task.
        backend: ``float`` (quantized values in float arithmetic, on any CPU), ``integer`` (int8 kernels: what
            deployment computes), or ``auto``: integer where this machine has fast, exact int8 kernels and they can
            compute the task's scheme, otherwise float, with a line in the log. It is part of the identity: numbers
            of the two are never mixed.

    Raises:
        UnsupportedLayerError: If the network cannot be quantized.
        QuantenvError: If the task asks for an unknown scheme, its network puts out NaN, the backend is unknown, or
            it is ``integer`` and cannot run here.
    """

    def __init__(self, task: Task, backend: str = "auto") -> None:
        self.task = task
        self.layers = task.layers
        self.scheme = parse_scheme(task.scheme)
        self.backend = choose_backend(backend, self.scheme.integer_obstacle)
        self.network = BACKENDS[self.backend](calibrate_task(task))
        if isinstance(self.network, IntegerNetwork):
            check_kernels(self.network)
        self.batch = batch_size(self.network, self.backend)
        self._runner = PrefixRunner(self.network)
        self.identity = content_hash([*fixed_by(task, self.backend), *self._summation()])
        self.reference = self.float_evaluation("search")

    @property
    def activations(self) -> Activations:
        """The network's stored tensors and products, which costs follow."""
        return activations_of(self.task)

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations on a split; what they share is computed once, whatever their order.

        Raises:
            AllocationError: If an allocation is for other layers.
            QuantenvError: If there is no such split.
        """
        allocations, data = fitting(allocations, self.layers), self.task.split(split)
        correct, loss = np.zeros(len(allocations), dtype=np.int64), np.zeros(len(allocations))
        for group, samples, logits in self.logits(allocations, data.inputs):
            counts, losses = tally(logits, data.labels[samples])
            correct[group] += counts
            loss[group] += losses
        return [Evaluation(int(c), len(data), float(s) / len(data)) for c, s in zip(correct, loss, strict=True)]

    def logits(
        self, allocations: Sequence[Allocation], inputs: torch.Tensor
    ) -> Iterator[tuple[list[int], slice, torch.Tensor]]:
        """Runs samples under many allocations; what these share is computed once, whatever their order.

        Args:
            allocations: Allocations for these layers.
            inputs: Shape (N, ...).

        Yields:
            Indices of some allocations, which samples were run, and their logits, (allocations, samples, classes),
            until every allocation has been run on every sample: of one allocation, the samples come in order.
        """
        batches = [slice(start, start + self.batch) for start in range(0, len(inputs), self.batch)]
        settings = self.network.settings(allocations)
        order = sorted(range(len(settings)), key=settings.__getitem__)
        for samples in batches:
            outputs = self._runner.run(inputs[samples], [settings[index] for index in order])
            for start in range(0, len(order), GROUP):
                group = order[start : start + GROUP]
                yield group, samples, torch.stack(list(itertools.islice(outputs, len(group))))

    def _summation(self) -> list[str]:
        """Returns what batches add to the identity: they fix the last digit of a mean loss over several of them.

        Float batches, and splits of one batch, have always been the same and add nothing.
        """
        largest = max(len(split) for name, split in self.task.splits.items() if name != "train")
        return [f"batches of {self.batch}"] if self.backend == "integer" and largest > self.batch else []

    def float_evaluation(self, split: str) -> Evaluation:
        """Evaluates the float network.

        Raises:
            QuantenvError: If it puts out NaN or infinity.
        """
        return evaluate_float(self.task, split, self.batch)


def float_evaluator(task: Task) -> PTQEvaluator:
    """Makes a post-training evaluator in float arithmetic."""
    return PTQEvaluator(task, "float")


def integer_evaluator(task: Task) -> PTQEvaluator:
    """Makes a post-training evaluator on int8 kernels."""
    return PTQEvaluator(task, "integer")


def fixed_by(task: Task, backend: str) -> list[str]:
    """Returns what fixes the logits that a `PTQEvaluator` gives, to the last digit: for identities.

    Args:
        task: The task.
        backend: ``float`` or ``integer``.
    """
    return ["ptq", backend, parse_scheme(task.scheme).version, task.identity, *numerics()]


def numerics() -> tuple[str, str]:
    """Returns what else fixes the last digits of sums: torch's version and the CPU's vector instructions."""
    return torch.__version__, torch.backends.cpu.get_cpu_capability()


def choose_backend(backend: str, scheme_obstacle: str | None = None) -> str:
    """Resolves ``auto`` and checks the others.

    Args:
        backend: ``auto``, ``float`` or ``integer``.
        scheme_obstacle: Why int8 kernels cannot compute the task's scheme, or None if they can.

    Returns:
        ``float`` or ``integer``.

    Raises:
        QuantenvError: If the backend is unknown, or ``integer`` and cannot run here.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise unknown_name("backend", backend, ["auto", *BACKENDS])
    if backend == "float":
        return backend
    obstacle = scheme_obstacle or integer_obstacle()
    if obstacle is None:
        return "integer"
    if backend == "integer":
        raise QuantenvError(f"The integer backend cannot run here: {obstacle}. Use backend 'float'.")
    logger.info("Evaluating in float arithmetic: %s.", obstacle)
    return "float"


def batch_size(network: QuantizedNetwork, backend: str) -> int:
    """Returns how many samples to run at once, so that a stored tensor takes at most `BATCH_BYTES` of the backend."""
    return _batch_size(network.calibration, network.value_bytes, BATCH_BYTES[backend])


def float_batch(calibration: Calibration) -> int:
    """Returns how many samples the float network of a calibration is to run on at once, by the same rule."""
    return _batch_size(calibration, 4, BATCH_BYTES["float"])


def _batch_size(calibration: Calibration, value_bytes: int, most: int) -> int:
    largest = max(site.features for site in calibration.sites)
    return max(1, most // (value_bytes * largest))


def evaluate_logits(network: Callable[[torch.Tensor], torch.Tensor], split: Split, batch: int = 256) -> Evaluation:
    """Evaluates a classifier on a split, in batches, without gradients.

    Args:
        network: Maps inputs (B, ...) to logits (B, classes).
        split: Samples.
        batch: Samples run at once.

    Returns:
        Correct predictions and mean cross-entropy (summed in double precision).
    """
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
            counts, losses = tally(network(inputs)[None], labels)
            correct, loss = correct + int(counts[0]), loss + float(losses[0])
    return Evaluation(correct=correct, samples=len(split), loss=loss / len(split))


@functools.lru_cache(maxsize=8)
def evaluate_float(task: Task, split: str, batch: int = 256) -> Evaluation:
    """Evaluates a task's float network on a split, once: what quantized ones are compared with.

    Raises:
        QuantenvError: If it puts out NaN or infinity, of which int8 kernels would make numbers.
    """
    evaluation = evaluate_logits(task.network, task.split(split), batch)
    if math.isfinite(evaluation.loss):
        return evaluation
    with torch.inference_mode():
        sound = torch.cat([task.network(part).isfinite().all(1) for part in task.split(split).inputs.split(batch)])
    raise QuantenvError(
        f"The float network of task {task.name!r} puts out NaN or infinity on {int((~sound).sum())} of {len(sound)} "
        f"samples of the split {split!r}, first on sample {int((~sound).nonzero()[0])}, of which no accuracy can be "
        "told: mend the network, or leave those samples out."
    )


def tally(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Counts correct predictions and sums cross-entropies of one batch under N allocations.

    Args:
        logits: Shape (N, B, classes).
        labels: Shape (B,).

    Returns:
        Correct predictions, int64 (N,), and summed cross-entropies in nats, float64 (N,). An allocation's numbers
        do not depend on the others.
    """
    with torch.inference_mode():
        correct = (logits.argmax(2) == labels).sum(1)
        wide = logits.double()
        losses = wide.logsumexp(2) - wide.gather(2, labels[None, :, None].expand(len(logits), -1, -1))[..., 0]
    return correct.numpy(), losses.numpy().sum(axis=1)
