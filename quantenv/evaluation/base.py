"""What every evaluator is: allocations in, evaluations out, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation
from quantenv.core.layers import LayerSpec


@dataclass(frozen=True)
class Evaluation:
    """How good an allocation is on one split."""

    correct: int
    """Samples classified correctly."""
    samples: int
    """Samples of the split."""
    loss: float
    """Mean cross-entropy in nats."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0-1."""
        return self.correct / self.samples


class Evaluator(Protocol):
    """Turns allocations into evaluations.

    The same allocation always gives the same evaluation, to the bit. The environment, not the evaluator,
    counts evaluations.

    It may have `activations`, its network's stored tensors and products, which costs follow: see `known_activations`.
    """

    layers: tuple[LayerSpec, ...]
    """The quantizable layers that an allocation must cover."""
    reference: Evaluation
    """The float network on the search split."""
    identity: str
    """Content hash of everything that fixes the numbers: weights, splits, scheme, settings."""

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations on a split, one evaluation for each, in order."""
        ...


def known_activations(evaluator: Evaluator) -> Activations | None:
    """Returns the stored tensors and products of an evaluator's network, or None if it knows only layers."""
    return getattr(evaluator, "activations", None)
