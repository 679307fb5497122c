import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.quantization.formats import Grid, activation_bounds, quantize, weight_bounds
from quantenv.training.qat.base import LSQQuantizer

BITS = st.integers(1, 8)
SCALES = st.floats(2**-10, 10, width=32)
VALUES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(torch.tensor)


def weight_grid(bits, scale):
    return Grid(bits, torch.tensor(scale), *weight_bounds(bits))


@given(BITS, SCALES, VALUES)
def test_quantizing_is_idempotent_and_honours_the_symmetric_range(bits, scale, x):
    grid = weight_grid(bits, scale)
    once = quantize(x, grid)
    assert torch.equal(quantize(once, grid), once)
    assert once.abs().max() <= scale * max(1, 2 ** (bits - 1) - 1) * (1 + 1e-6)
    assert torch.equal(quantize(-x, grid), -once) or bits == 1  # sign(0) is +1


@given(BITS, SCALES, VALUES)
def test_each_value_goes_to_the_nearest_grid_point(bits, scale, x):
    grid = weight_grid(bits, scale)
    points = np.array([-1, 1] if bits == 1 else np.arange(grid.low, grid.high + 1)) * np.float64(scale)
    nearest = np.abs(x.double().numpy()[:, None] - points).min(axis=1)
    error = np.abs(x.double().numpy() - quantize(x, grid).double().numpy())
    np.testing.assert_allclose(error, nearest, atol=1e-4 * scale + 1e-5)


def test_one_bit_is_sign_with_two_values_not_three():
    x = torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0])
    assert quantize(x, weight_grid(1, 0.5)).tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5]
    signed = Grid(1, torch.tensor(0.5), *activation_bounds(1, zero_point=1))
    assert quantize(x, signed).tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5]
    unsigned = Grid(1, torch.tensor(0.5), *activation_bounds(1))
    assert quantize(x, unsigned).tolist() == [0.0, 0.0, 0.0, 0.0, 0.5]


@given(BITS, st.integers(0, 255))
def test_affine_bounds_have_all_codes_and_contain_zero(bits, zero_point):
    zero_point = min(zero_point, 2**bits - 1)
    low, high = activation_bounds(bits, zero_point)
    if bits == 1 and zero_point:
        assert (low, high) == (-1, 1)
    else:
        assert high - low + 1 == 2**bits
        assert low <= 0 <= high


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_outside_one_to_eight_are_refused(bits):
    with pytest.raises(QuantenvError, match="from 1 to 8"):
        weight_bounds(bits)
    with pytest.raises(QuantenvError, match="from 1 to 8"):
        activation_bounds(bits)


@settings(deadline=None)  # the first call loads autograd
@given(BITS, SCALES, VALUES)
def test_lsq_computes_what_the_linear_quantizer_computes(bits, scale, x):
    grid = weight_grid(bits, scale)
    torch.testing.assert_close(LSQQuantizer(grid, 7)(x).detach(), quantize(x, grid), rtol=1e-5, atol=1e-5)


def lsq_reference(x, scale, grid, frozen_residual):
    """LSQ's forward pass as a differentiable function: the rounding residual is a constant (Esser et al., eq. 3)."""
    v = np.clip(x / scale, grid.low, grid.high)
    return (v + frozen_residual) * scale


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.floats(0.05, 2.0), st.integers(0, 2**31))
def test_lsq_gradients_against_finite_differences(bits, scale, seed):
    rng = np.random.default_rng(seed)
    grid = Grid(bits, torch.tensor(scale, dtype=torch.float64), *weight_bounds(bits))
    x = rng.uniform(-1.5 * grid.high * scale, 1.5 * grid.high * scale, 20)
    x = x[np.abs(np.abs(x / scale) - grid.high) > 1e-3]  # the clamp has no derivative at its corners
    elements = 9
    quantizer = LSQQuantizer(grid, elements)
    data = torch.tensor(x, requires_grad=True)
    upstream = torch.tensor(rng.normal(size=len(x)))
    (quantizer(data) * upstream).sum().backward()

    v = np.clip(x / scale, grid.low, grid.high)
    residual = np.round(v) - v
    step = 1e-6
    f = lambda x, s: lsq_reference(x, s, grid, residual)  # noqa: E731
    by_scale = (f(x, scale + step) - f(x, scale - step)) / (2 * step)
    by_x = (f(x + step, scale) - f(x - step, scale)) / (2 * step)
    factor = 1 / math.sqrt(elements * grid.high)
    np.testing.assert_allclose(quantizer.scale.grad, factor * (by_scale * upstream.numpy()).sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.grad, by_x * upstream.numpy(), rtol=1e-5, atol=1e-6)


def test_one_bit_lsq_gradients():
    grid = Grid(1, torch.tensor(0.5, dtype=torch.float64), *weight_bounds(1))
    quantizer = LSQQuantizer(grid, 4)
    x = torch.tensor([-2.0, -0.3, 0.2, 3.0], dtype=torch.float64, requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]  # straight-through inside [-scale, scale]
    assert quantizer.scale.grad.item() == pytest.approx((-1 - 1 + 1 + 1) / math.sqrt(4))


def test_per_channel_scales_have_per_channel_gradients():
    grid = Grid(4, torch.tensor([[0.1], [1.0]]), *weight_bounds(4))
    quantizer = LSQQuantizer(grid, 3)
    quantizer(torch.randn(2, 3)).square().sum().backward()
    assert quantizer.scale.grad.shape == (2, 1)


def test_quantizing_changes_neither_input_nor_memory_format():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    assert quantize(x, weight_grid(4, 0.1)).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
