"""What a sensitivity is, and the kinds there are."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from quantenv.core.errors import QuantenvError
from quantenv.core.typed import check_fields

#: Kinds by name, each with what it measures.
KINDS = {
    "accuracy": "drop of the accuracy",
    "loss": "increase of the mean cross-entropy, nats",
    "kl": "increase of KL(float || quantized) of the outputs, nats",
    "sqnr": "increase of the outputs' noise-to-signal ratio, the reciprocal of the SQNR",
    "fisher": "increase of the squared perturbation weighted by the diagonal of the empirical Fisher information",
    "fisher-output": "increase of the squared error of the layer's outputs weighted by their Fisher information",
    "hessian": "increase of the average Hessian trace times the squared perturbation (HAWQ-V2)",
}
#: The kind whose sums rank allocations best; `experiments/studies/bench_sensitivity.py` measures it.
DEFAULT = "kl"
#: Kinds that the rows of an evaluation table tell, the best first.
TABLE_KINDS = ("loss", "accuracy")

#: What a bit-width perturbs, in the order of a layer's (weight bits, activation bits).
PARTS = ("weights", "activations")

#: Told how many steps are done, of how many, and what is measured.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How much each layer alone harms the network at each bit-width, relative to 8 bits everywhere."""

    kind: str
    """One of `KINDS`."""
    weights: np.ndarray
    """Harm of [layer, weight bits - 1], float64 (L, 8): 0 at 8 bits, NaN where it is unknown."""
    activations: np.ndarray
    """Harm of [layer, activation bits - 1], float64 (L, 8), likewise."""
    evaluations: float
    """What measuring this kind alone costs, in evaluations of one allocation on the whole search split."""
    identity: str
    """Content hash of everything that fixes the numbers."""
    notes: tuple[str, ...] = ()
    """Sentences on what was not reached."""

    def __post_init__(self) -> None:
        self.weights.setflags(write=False)
        self.activations.setflags(write=False)

    def total(self, bits: np.ndarray) -> np.ndarray:
        """Returns the additive proxy of allocations: the sum of their layers' harms.

        Args:
            bits: Whole numbers, (..., L, 2) = [layer, (weight bits, activation bits)].

        Returns:
            Float64 (...).
        """
        layer = np.arange(len(self.weights))
        harm = self.weights[layer, bits[..., 0] - 1] + self.activations[layer, bits[..., 1] - 1]
        return harm.sum(axis=-1)


@dataclass(frozen=True)
class Settings:
    """How sensitivities of a network are measured; part of their identity.

    Raises:
        QuantenvError: If a value is out of range.
    """

    images: int | None = 256
    """Samples of the search split, the first ones, that accuracy, loss, kl and sqnr are measured on, fewer if it has
    fewer; None is all. More hardly change how layers and allocations rank: see
    `experiments/studies/bench_sensitivity_images.py`."""
    gradient_images: int = 256
    """Samples of the search split, the first ones, that fisher, fisher-output and hessian are measured on; fewer if it
    has fewer."""
    relative_error: float = 0.1
    """Standard error of a Hessian trace, as a share of its size, at which no more probes are drawn."""
    probes: int = 64
    """Probes at most for one trace."""
    seed: int = 0
    """Seed of the probes."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in asdict(self).items():
            if name not in ("seed", "relative_error") and value is not None and value < 1:
                raise QuantenvError(f"{name} is {value}; expected a whole number of at least 1.")
        if not self.relative_error > 0:
            raise QuantenvError(f"relative_error is {self.relative_error}; expected a number above 0.")


def harm(raw: np.ndarray) -> np.ndarray:
    """Returns measures (L, 8) as harm relative to 8 bits."""
    return raw - raw[:, -1:]


def shown_evaluations(layers: int, images: int | None = None, samples: int = 1) -> float:
    """Returns what `quantenv.sensitivity.layer_sensitivity` costs, in evaluations on the whole search split.

    Args:
        layers: Layers, L: each deviates once, and 8 bits everywhere come besides.
        images: Samples that are used; None is all.
        samples: Samples of the search split.
    """
    return (layers + 1) * min(images or samples, samples) / samples
