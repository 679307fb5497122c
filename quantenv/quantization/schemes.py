"""Quantization schemes: how weights are rounded, and the optional steps after it, as a task names them.

A scheme is written ``weights+step+step``: ``linear``, ``k-means``, ``linear+bias+batch-norm`` (tasks' default), ...
"""

from dataclasses import dataclass

from quantenv.core.errors import QuantenvError, unknown_name

#: How weights are rounded, each with the version of its numbers (part of evaluators' identities).
SCHEMES = {"linear": "linear-mse-folded-4", "k-means": "k-means-folded-4"}
#: Optional post-training steps, each with the version of its numbers.
STEPS = {
    "equalisation": "equalisation-2",
    "absorption": "absorption-2",
    "adaround": "adaround-1",
    "brecq": "brecq-1",
    "bias": "bias-1",
    "batch-norm": "batch-norm-2",
}
#: Steps that learn how weights are rounded, of which a scheme has at most one.
LEARNED = ("adaround", "brecq")


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme, taken apart."""

    weights: str = "linear"
    """How weights are rounded, a name of `SCHEMES`. Activations are rounded linearly."""
    equalisation: bool = False
    """Whether weight ranges are equalised across layers before anything is measured."""
    absorption: bool = False
    """Whether what hardly a value of a channel is below is moved into the next layer's bias, after equalisation."""
    adaround: bool = False
    """Whether weights are rounded so that each layer's outputs change least, see `quantenv.quantization.adaround`."""
    brecq: bool = False
    """Whether weights are rounded so that each block's output changes least: `quantenv.quantization.reconstruction`."""
    bias: bool = False
    """Whether biases are corrected for what rounding weights does to the mean of a layer's outputs."""
    batch_norm: bool = False
    """Whether batch-norm statistics are estimated again under each allocation."""

    @property
    def learned(self) -> bool:
        """Whether how weights are rounded is learned, rather than to nearest."""
        return self.adaround or self.brecq

    @property
    def version(self) -> str:
        """What of the numbers the scheme fixes."""
        steps = [STEPS[name] for name in STEPS if getattr(self, name.replace("-", "_"))]
        return "+".join([SCHEMES[self.weights], *steps])

    @property
    def integer_obstacle(self) -> str | None:
        """Why int8 kernels cannot compute the scheme, or None if they can."""
        if self.weights == "k-means":
            return "codebooks of k-means lie on no integer grid"
        return None


def parse_scheme(text: str) -> Scheme:
    """Reads a scheme.

    Args:
        text: A name of `SCHEMES`, then any names of `STEPS`, joined by ``+``.

    Returns:
        The scheme.

    Raises:
        QuantenvError: If a name is unknown, a step is given twice, or two steps exclude each other.
    """
    weights, *steps = text.split("+")
    if weights not in SCHEMES:
        raise unknown_name("quantization scheme", weights, SCHEMES)
    for step in steps:
        if step not in STEPS:
            raise unknown_name("post-training step in a quantization scheme:", step, STEPS)
    if len(set(steps)) < len(steps):
        raise QuantenvError(f"Quantization scheme {text!r} names a step twice; give each once.")
    learned = [step for step in steps if step in LEARNED]
    if len(learned) > 1:
        raise QuantenvError(
            f"Quantization scheme {text!r} rounds weights in two ways, {' and '.join(map(repr, learned))}: give one."
        )
    if learned and weights == "k-means":
        raise QuantenvError(
            f"Quantization scheme {text!r} has codebooks, to which {learned[0]!r} does not round: use 'linear' with "
            "it, or leave it out."
        )
    return Scheme(weights, **{step.replace("-", "_"): True for step in steps})
