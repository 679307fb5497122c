"""A synthetic additive task: every allocation's accuracy is a sum over layers, so the optimum is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantenv.core.activations import Activations, Product, StoredTensor, chain
from quantenv.core.allocation import Allocation
from quantenv.core.layers import LayerSpec
from quantenv.evaluation.base import Evaluation
from quantenv.hardware import Device, compile_costs


def synthetic_layers(count: int = 6, seed: int = 0) -> tuple[LayerSpec, ...]:
    """Makes plausible convolution layers of very unequal sizes, the last one linear."""
    rng = np.random.default_rng(seed)
    layers = []
    channels = 4
    for index in range(count):
        out = int(rng.integers(4, 40))
        linear = index == count - 1
        kernel = 1 if linear else int(rng.choice([1, 3]))
        size = 1 if linear else 8
        params = channels * out * kernel * kernel
        layers.append(
            LayerSpec(
                name=f"layer{index}",
                kind="linear" if linear else "conv",
                in_channels=channels,
                out_channels=out,
                kernel_size=(kernel, kernel),
                stride=(0, 0) if linear else (1, 1),
                groups=1,
                input_shape=(channels,) if linear else (channels, size, size),
                output_shape=(out,) if linear else (out, size, size),
                params=params,
                bias_params=out,
                macs=params * size * size,
            )
        )
        channels = out
    return tuple(layers)


class AdditiveEvaluator:
    """Evaluator whose error is the sum of `harm[layer, weight bits - 1, activation bits - 1]`."""

    samples = 10_000
    identity = "synthetic-additive"

    def __init__(self, layers: tuple[LayerSpec, ...] | None = None, seed: int = 0) -> None:
        self.layers = layers if layers is not None else synthetic_layers(seed=seed)
        rng = np.random.default_rng(seed + 1)
        count = len(self.layers)
        scale = 0.3 * rng.dirichlet(np.full(count, 0.5))  # very unequal layers
        decay = 4.0 ** -np.arange(8)  # halving the step divides the squared error by four
        weight = scale[:, None, None] * decay[None, :, None]
        activation = 0.5 * rng.permutation(scale)[:, None, None] * decay[None, None, :]
        self.harm = 8.0 * (weight + activation)
        self.reference = Evaluation(correct=9_600, samples=self.samples, loss=0.1)
        self.calls = 0

    @property
    def sensitivity(self) -> np.ndarray:
        """Harm of 4-bit weights in each layer, shape (L,)."""
        return self.harm[:, 3, 7]

    def total_harm(self, allocation: Allocation) -> float:
        """Sum of the layers' harms."""
        bits = np.array(allocation.bits) - 1
        return float(self.harm[np.arange(len(bits)), bits[:, 0], bits[:, 1]].sum())

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Looks the harms up."""
        results = []
        for allocation in allocations:
            self.calls += 1
            harm = self.total_harm(allocation.check_fits(self.layers))
            correct = round(self.samples * max(0.0, 0.96 - harm))
            results.append(Evaluation(correct=correct, samples=self.samples, loss=0.1 + harm))
        return results


def chain_costs(layers: Sequence[LayerSpec], device: Device, codebooks: bool = False) -> dict[str, Any]:
    """Compiles the costs of layers that follow one another."""
    return compile_costs(layers, chain(layers), device, codebooks)


def random_activations(layers: tuple[LayerSpec, ...], seed: int) -> Activations:
    """Draws what layers read and write: tensors of one, two or three of them, some of an add, some of nothing else."""
    rng = np.random.default_rng(seed)
    names = [layer.name for layer in layers]
    readers = [part.tolist() for part in np.split(names, np.flatnonzero(rng.random(len(names) - 1) < 0.5) + 1)]
    readers = [each[start : start + 3] for each in readers for start in range(0, len(each), 3)]
    for place in sorted(rng.integers(0, len(readers) + 1, int(rng.integers(3))).tolist(), reverse=True):
        readers.insert(place, [])
    count, tensors = len(readers), []
    for step, each in enumerate(readers):
        shared = not each or bool(rng.random() < 0.3)
        elements = int(rng.integers(1, 200))
        tensors.append(
            StoredTensor(
                name=f"tensor{step}",
                elements=elements,
                layers=tuple(each),
                shared=shared,
                reads=elements * (len(each) + shared),
                written=step > 0,
                charged_to=names[int(rng.integers(len(names)))],
                first=step,
                last=int(rng.integers(step, count + 1)),
            )
        )
    products = tuple(Product(f"product{n}", int(rng.integers(1, 5000)), names[n]) for n in range(int(rng.integers(2))))
    return Activations(tuple(tensors), products).check_fits(layers)


class GraphEvaluator(AdditiveEvaluator):
    """An additive evaluator that knows what its layers read and write."""

    def __init__(self, layers: tuple[LayerSpec, ...], seed: int = 0) -> None:
        super().__init__(layers, seed)
        self.activations = random_activations(layers, seed)
