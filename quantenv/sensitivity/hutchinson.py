"""The trace of a Hessian by random probes, until the standard error says that it is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

#: Probes before the standard error is trusted: a spread estimated from fewer is too often far too small.
LEAST_PROBES = 8


@dataclass(frozen=True)
class TraceEstimate:
    """A trace estimated from probes."""

    mean: float
    """The estimate."""
    standard_error: float
    """Standard deviation of the samples / sqrt(probes); infinite for a single one."""
    probes: int
    """Samples that were averaged."""
    reached: bool
    """Whether the standard error came down to the wanted share of the mean's size."""


def estimate_trace(sample: Callable[[int], float], relative_error: float, most: int) -> TraceEstimate:
    """Draws samples until their mean's standard error is small against the mean.

    That the running mean hardly moves is no criterion: it moves by little from one probe to the next long before it is
    near the trace.

    Args:
        sample: Draws the independent, unbiased sample of a number 0, 1, ....
        relative_error: Standard error to reach, as a share of the absolute mean.
        most: Samples at most, whether that is reached or not.

    Returns:
        The estimate, from at least `LEAST_PROBES` samples unless `most` is less.
    """
    samples: list[float] = []
    while True:
        samples.append(sample(len(samples)))
        if len(samples) >= min(LEAST_PROBES, most):
            result = summarize(samples, relative_error)
            if result.reached or len(samples) >= most:
                return result


def summarize(samples: Sequence[float], relative_error: float) -> TraceEstimate:
    """Averages samples and says how well they know the mean."""
    mean = float(np.mean(samples))
    error = float(np.std(samples, ddof=1)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf
    return TraceEstimate(mean, error, len(samples), error <= relative_error * abs(mean))


def probe_trace(
    loss: torch.Tensor, variable: torch.Tensor, generator: torch.Generator, rows: torch.Tensor | slice = slice(None)
) -> float:
    """Samples the trace of the Hessian H of a loss in a variable with one Rademacher probe (Hutchinson 1990).

    With v in {-1, +1} and H v by differentiating the gradient once more (Pearlmutter 1994), ``v . H v`` has the
    expectation trace(H) and the variance ``2 * sum of H_ij**2 over i != j``.

    Args:
        loss: A scalar whose graph is still there.
        variable: What it is differentiated in.
        generator: Draws the probe.
        rows: The part of the variable's first dimension whose share of the trace is wanted.

    Returns:
        The sample.
    """
    (gradient,) = torch.autograd.grad(loss, [variable], create_graph=True)
    gradient = gradient[rows]
    probe = torch.randint(0, 2, gradient.shape, generator=generator).to(variable.dtype).mul_(2).sub_(1)
    if not gradient.requires_grad:  # a loss that is linear in the variable
        return 0.0
    (product,) = torch.autograd.grad(gradient, [variable], probe)
    return float((probe.double() * product[rows].double()).sum())
