import numpy as np
import pytest
import torch

from quantenv.sensitivity.hutchinson import LEAST_PROBES, estimate_trace, probe_trace, summarize


def quadratic(size=12, seed=0):
    """A symmetric matrix and a sampler of the trace of the Hessian of x A x / 2 + b x."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.double)
    matrix = matrix + matrix.T + 8 * torch.eye(size)
    x = torch.randn(size, generator=generator, dtype=torch.double, requires_grad=True)
    probes = torch.Generator().manual_seed(seed + 1)

    def sample(number=0):
        return probe_trace(0.5 * x @ matrix @ x + x.sum(), x, probes)

    return matrix, sample


def test_one_probe_is_exact_for_a_diagonal_hessian():
    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    scale = torch.arange(1.0, 6, dtype=torch.double)
    sample = probe_trace((scale * x.square()).sum(), x, torch.Generator().manual_seed(0))
    assert sample == pytest.approx(2 * 15)


def test_a_linear_loss_has_no_curvature():
    x = torch.ones(3, requires_grad=True)
    assert probe_trace(x.sum(), x, torch.Generator().manual_seed(0)) == 0.0


def test_samples_have_the_trace_as_mean_and_the_known_variance():
    matrix, sample = quadratic()
    samples = np.array([sample() for _ in range(2000)])
    variance = 2 * float((matrix - torch.diag(matrix.diag())).square().sum())
    assert samples.mean() == pytest.approx(float(matrix.trace()), abs=4 * np.sqrt(variance / 2000))
    assert samples.var(ddof=1) == pytest.approx(variance, rel=0.15)


def test_the_standard_error_covers_the_trace():
    matrix, sample = quadratic()
    trace = float(matrix.trace())
    inside = []
    for _ in range(300):
        result = summarize([sample() for _ in range(10)], 0.1)
        inside.append(abs(result.mean - trace) <= 2.262 * result.standard_error)  # Student's t, 9 degrees, 95%
    assert 0.91 <= np.mean(inside) <= 0.99


def test_probing_ends_at_the_standard_error():
    matrix, sample = quadratic()
    result = estimate_trace(sample, 0.02, 10_000)
    assert result.reached
    assert LEAST_PROBES <= result.probes < 10_000
    assert result.standard_error <= 0.02 * abs(result.mean)
    assert result.mean == pytest.approx(float(matrix.trace()), abs=4 * result.standard_error)


def test_a_running_mean_that_hardly_moves_ends_nothing():
    draws = np.random.default_rng(0).normal(1.0, 3.0, 10_000)
    means = np.cumsum(draws) / np.arange(1, len(draws) + 1)
    moved = np.abs(np.diff(means)) / np.abs(means[:-1])
    early = int(np.flatnonzero(moved < 1e-3)[0])
    assert early < 100  # where PyHessian's rule would have stopped, with an error of more than 30%
    result = estimate_trace(lambda number: float(draws[number]), 0.05, len(draws))
    assert result.probes == pytest.approx((3 / 0.05) ** 2, rel=0.2)


def test_the_most_probes_end_it_unreached():
    _, sample = quadratic()
    result = estimate_trace(sample, 1e-6, 11)
    assert (result.probes, result.reached) == (11, False)
    assert result.standard_error > 1e-6 * abs(result.mean)


def test_one_probe_knows_no_error():
    result = estimate_trace(lambda number: 3.0, 0.1, 1)
    assert (result.mean, result.standard_error, result.probes, result.reached) == (3.0, np.inf, 1, False)


def test_a_layer_without_curvature_is_known_at_once():
    result = estimate_trace(lambda number: 0.0, 0.1, 100)
    assert (result.mean, result.probes, result.reached) == (0.0, LEAST_PROBES, True)
