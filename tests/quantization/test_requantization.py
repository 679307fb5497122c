"""Requantization against integer arithmetic in Python's own whole numbers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantenv.quantization.formats import Grid, activation_bounds
from quantenv.quantization.requantization import EXACT, LARGEST_BIAS, channel_scales, dyadic, multipliers, requantize

SCALES = st.floats(2.0**-20, 2.0**10, width=32)


def to_bits(value, bits):
    """Rounds a fraction to so many significant bits, ties to even."""
    if not value:
        return Fraction(0)
    exponent = math.floor(math.log2(abs(value))) + 1 - bits
    if abs(value) / Fraction(2) ** (exponent + bits) >= 1:  # log2 was rounded
        exponent += 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent


@given(st.lists(st.integers(1 - EXACT, EXACT - 1), min_size=1, max_size=50), st.floats(2.0**-40, 1.0, width=32))
def test_a_sum_is_multiplied_and_rounded_as_whole_numbers_are(sums, multiplier):
    grid = Grid(8, torch.tensor(1.0), -100, 155)
    values = torch.tensor(sums, dtype=torch.float32) * torch.tensor(multiplier)
    found = requantize(values, grid, grid.low, grid.high).int().tolist()
    for number, each in zip(sums, found, strict=True):
        product = to_bits(number * Fraction(multiplier), 24)
        assert each == min(max(round(product), grid.low), grid.high)


@given(SCALES, SCALES, SCALES)
def test_multipliers_are_rounded_after_each_operation(weight, activation, output):
    found = multipliers(np.array([weight], np.float32), np.float32(activation), np.float32(output))
    product = np.float32(np.float32(weight) * np.float32(activation))
    assert found[0] == np.float32(product / np.float32(output))
    assert found.dtype == np.float32


def test_multipliers_of_tiny_scales_do_not_vanish():
    tiny = np.array([1e-30], np.float32)
    assert multipliers(tiny, np.float32(1e-20), np.float32(1e-25))[0] == pytest.approx(1e-25, rel=1e-6)


@given(SCALES, SCALES, SCALES, st.integers(1, 255), st.integers(1, 255), st.data())
def test_sums_of_two_terms_are_exact_and_close_to_what_scales_say(first, second, output, most, other, data):
    factors = dyadic([first, second], output, [most, other])
    terms = [data.draw(st.integers(-largest, largest)) for largest in (most, other)]
    exact = sum(Fraction(factor) * term for factor, term in zip(factors, terms, strict=True))
    narrow = np.float32(np.float32(factors[0]) * np.float32(terms[0])) + np.float32(factors[1]) * np.float32(terms[1])
    assert Fraction(float(narrow)) == exact
    ratios = [Fraction(scale) / Fraction(output) for scale in (first, second)]
    wanted = sum(ratio * term for ratio, term in zip(ratios, terms, strict=True))
    bound = sum(ratio * largest for ratio, largest in zip(ratios, (most, other), strict=True))
    # Each of 15 bits or more: half a unit of the last place of what 24 bits leave, for each of the values.
    assert abs(exact - wanted) <= (most + other) * bound / (1 << 23)


@given(st.floats(-100, 100), st.floats(2.0**-20, 1.0, width=32), st.floats(2.0**-20, 1.0, width=32))
def test_biases_are_whole_numbers_of_31_bits(bias, weight, activation):
    found = channel_scales(np.array([weight], np.float32), np.float32(activation), np.array([bias]), np.array([False]))
    unit = float(np.float32(weight)) * float(np.float32(activation))
    assert found.unit[0] == unit
    assert found.bias[0] == max(-LARGEST_BIAS, min(LARGEST_BIAS, round(bias / unit)))
    if abs(bias) / unit < LARGEST_BIAS:
        assert abs(found.bias_value[0] - bias) <= unit / 2 * (1 + 1e-9)


@pytest.mark.parametrize("bias", [0.0, 0.37, -1e-7, 1e6])
def test_channels_without_weights_keep_their_bias(bias):
    scale = np.array([1.0, 0.0], np.float32)
    found = channel_scales(scale, np.float32(0.1), np.array([bias, bias]), np.array([True, True]))
    assert found.bias_value == pytest.approx([bias, bias], rel=1e-5)
    assert np.isfinite(found.bias).all()


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 100), (4, 0), (3, 5), (2, 1), (1, 0), (1, 1)])
def test_what_is_rounded_lies_on_the_grid(bits, zero_point):
    values = torch.randn(500, generator=torch.Generator().manual_seed(bits)) * 2**bits
    grid = Grid(bits, torch.tensor(0.037), *activation_bounds(bits, zero_point))
    numbers = requantize(values.clone(), grid, grid.low, grid.high)
    expected = (
        np.where(values.numpy() >= 0, 1, -1) if grid.sign else np.clip(np.rint(values.numpy()), grid.low, grid.high)
    )
    assert (numbers.numpy() == np.asarray(expected)).all()
