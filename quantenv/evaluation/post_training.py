"""The post-training evaluator: one prepared network, allocations swapped in, in integer or float arithmetic."""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from quantenv.backends.integer import IntegerNetwork, float_operators
from quantenv.backends.prefix import PrefixRunner
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.backends.verification import check_integers
from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation, fitting
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import content_hash
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.preparing import calibrate_task, split_digest
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Split, Task
from quantenv.tasks.activations import activations_of

logger = logging.getLogger(__name__)

#: Bytes of a network's largest stored tensor for one batch, by bytes of a value: larger batches leave the processor's
#: caches. On ResNet-20, 1,000 images at once take 1.6 times as long as batches of 64 in float arithmetic; on int8
#: kernels, whose other costs are fewer, batches of 256 take 1.15 times as long as batches of 128.
BATCH_BYTES = {4: 4 << 20, 1: 2 << 20}
#: Allocations whose logits are tallied together.
GROUP = 64
#: Backends by name.
BACKENDS: dict[str, type[QuantizedNetwork]] = {"integer": IntegerNetwork, "float": QuantizedNetwork}
#: Version of the integer arithmetic: equal versions give equal numbers.
INTEGER_VERSION = "integer-1"
#: Decimals of a recorded mean loss, in nats. What is left of different machines, in the last bits of exponentials and
#: logarithms, lies far behind them.
DECIMALS = 6


class PTQEvaluator:
    """Evaluates allocations after post-training quantization.

    Batch norms are folded, inputs and weights are channels-last, and the quantized weights of every bit-width are
    kept, so that changing the allocation copies nothing. Threads may share an evaluator.

    In integer arithmetic, of networks without float operators (see `IntegerNetwork`), counts and losses are the same on
    every CPU, with any number of threads and whatever is evaluated together: `exact` says so.

    Args:
        task: The task.
        backend: ``integer`` (what deployment computes), ``float`` (the same rounding simulated on float values), or
            ``auto``: integer unless the scheme's weights lie on no integer grid, with a line in the log. It is part of
            the identity: numbers of the two are never mixed.
        kernels: What computes integer arithmetic: ``int8`` kernels, ``float32`` ones, or ``auto``, the faster ones that
            this machine has. The numbers are the same, and so is the identity.

    Raises:
        UnsupportedLayerError: If the network cannot be quantized.
        QuantenvError: If the task asks for an unknown scheme, its network puts out NaN, the backend is unknown, it is
            ``integer`` and the scheme has no integer arithmetic, or the kernels cannot run here.
    """

    def __init__(self, task: Task, backend: str = "auto", kernels: str = "auto") -> None:
        self.task = task
        self.layers = task.layers
        self.scheme = parse_scheme(task.scheme)
        self.backend = choose_backend(backend, self.scheme.integer_obstacle)
        calibration = calibrate_task(task)
        self.exact = False
        if self.backend == "integer":
            self.network: QuantizedNetwork = (integers := IntegerNetwork(calibration, kernels))
            check_integers(integers)
            self.exact = integers.exact
            if not self.exact:
                logger.info(
                    "Computed in float, with last digits of this machine: %s.", ", ".join(integers.float_operators)
                )
        else:
            self.network = QuantizedNetwork(calibration)
        self.batch = batch_size(self.network)
        self._runner = PrefixRunner(self.network)
        self.identity = content_hash(fixed_by(task, self.backend))
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
        correct, losses = np.zeros(len(allocations), dtype=np.int64), np.zeros((len(allocations), len(data)))
        for group, samples, logits in self.logits(allocations, data.inputs):
            counts, losses[group, samples] = tally(logits, data.labels[samples])
            correct[group] += counts
        return [evaluation(int(count), row) for count, row in zip(correct, losses, strict=True)]

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
    """Makes a post-training evaluator in integer arithmetic."""
    return PTQEvaluator(task, "integer")


def fixed_by(task: Task, backend: str) -> list[str]:
    """Returns what fixes the logits that a `PTQEvaluator` gives: for identities.

    In exact integer arithmetic that is the task and what was prepared of it, wherever that was done; else last digits
    depend on the machine, too.

    Args:
        task: The task.
        backend: ``float`` or ``integer``.
    """
    calibration = calibrate_task(task)
    parts = ["ptq", backend, parse_scheme(task.scheme).version, task.identity, calibration.content_hash]
    if backend == "integer" and not float_operators(calibration):
        return [*parts, INTEGER_VERSION]
    return [*parts, *numerics()]


def numerics() -> tuple[str, str]:
    """Returns what else fixes the last digits of float sums: torch's version and the CPU's vector instructions."""
    return torch.__version__, torch.backends.cpu.get_cpu_capability()


def choose_backend(backend: str, scheme_obstacle: str | None = None) -> str:
    """Resolves ``auto`` and checks the others.

    Args:
        backend: ``auto``, ``float`` or ``integer``.
        scheme_obstacle: Why the task's scheme has no integer arithmetic, or None if it has.

    Returns:
        ``float`` or ``integer``.

    Raises:
        QuantenvError: If the backend is unknown, or ``integer`` and there is an obstacle.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise unknown_name("backend", backend, ["auto", *BACKENDS])
    if backend == "float":
        return backend
    if scheme_obstacle is None:
        return "integer"
    if backend == "integer":
        raise QuantenvError(f"The network has no integer arithmetic: {scheme_obstacle}. Use backend 'float'.")
    logger.info("Evaluating in float arithmetic: %s.", scheme_obstacle)
    return "float"


def batch_size(network: QuantizedNetwork) -> int:
    """Returns how many samples to run at once, so that a stored tensor takes at most its `BATCH_BYTES`."""
    return _batch_size(network.calibration, network.storage.value_bytes)


def float_batch(calibration: Calibration) -> int:
    """Returns how many samples the float network of a calibration is to run on at once, by the same rule."""
    return _batch_size(calibration, 4)


def _batch_size(calibration: Calibration, value_bytes: int) -> int:
    largest = max(site.features for site in calibration.sites)
    return max(1, BATCH_BYTES[value_bytes] // (value_bytes * largest))


def evaluate_logits(network: Callable[[torch.Tensor], torch.Tensor], split: Split, batch: int = 256) -> Evaluation:
    """Evaluates a classifier on a split, in batches, without gradients.

    Args:
        network: Maps inputs (B, ...) to logits (B, classes).
        split: Samples.
        batch: Samples run at once.

    Returns:
        Correct predictions and mean cross-entropy.
    """
    correct, losses = 0, []
    with torch.inference_mode():
        for inputs, labels in zip(split.inputs.split(batch), split.labels.split(batch), strict=True):
            counts, parts = tally(network(inputs)[None], labels)
            correct += int(counts[0])
            losses.append(parts[0])
    return evaluation(correct, np.concatenate(losses))


def evaluation(correct: int, losses: np.ndarray) -> Evaluation:
    """Makes an evaluation of the samples' losses, float64 (N,): their mean does not depend on an order of the sum."""
    return Evaluation(correct, len(losses), round(math.fsum(losses) / len(losses), DECIMALS))


@functools.lru_cache(maxsize=8)
def evaluate_float(task: Task, split: str, batch: int = 256) -> Evaluation:
    """Evaluates a task's float network on a split, once: what quantized ones are compared with.

    Where the prepared network knows it of this very split, it is that, on every machine.

    Raises:
        QuantenvError: If it puts out NaN or infinity, of which int8 kernels would make numbers.
    """
    prepared, data = calibrate_task(task).prepared, task.split(split)
    known = None if prepared is None else prepared.about.references.get(split)
    if known is not None and known.digest == split_digest(data):
        return Evaluation(known.correct, known.samples, known.loss)
    evaluation = evaluate_logits(task.network, data, batch)
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
    """Counts correct predictions and computes cross-entropies of one batch under N allocations.

    Args:
        logits: Shape (N, B, classes).
        labels: Shape (B,).

    Returns:
        Correct predictions, int64 (N,), and cross-entropies in nats, float64 (N, B). An allocation's numbers do not
        depend on the others.
    """
    with torch.inference_mode():
        correct = (logits.argmax(2) == labels).sum(1)
        wide = logits.double()
        losses = wide.logsumexp(2) - wide.gather(2, labels[None, :, None].expand(len(logits), -1, -1))[..., 0]
    return correct.numpy(), losses.numpy()
