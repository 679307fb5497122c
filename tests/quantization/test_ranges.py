import importlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.quantization.calibrating import CALIBRATION_BATCH, calibrate
from quantenv.quantization.formats import Grid, quantize
from quantenv.quantization.kmeans import codebooks
from quantenv.quantization.ranges import MAX_SAMPLES, activation_grids, spread, weight_grids

calibration_module = importlib.import_module("quantenv.quantization.calibrating")

TENSORS = st.tuples(st.integers(0, 2**31), st.sampled_from(["normal", "heavy", "uniform", "relu", "negative"]))


def make(seed, kind, shape=(3, 40)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"normal": x, "heavy": x**3, "uniform": x.clamp(-1, 1), "relu": x.relu(), "negative": -x.abs()}[kind]


def errors(x, grids):
    return [float((quantize(x, grids[bits]) - x).square().mean()) for bits in range(1, 9)]


@settings(max_examples=40, deadline=None)
@given(TENSORS)
def test_more_bits_never_have_a_larger_error(tensor):
    x = make(*tensor)
    for grids in (weight_grids(x), activation_grids(x)):
        found = errors(x, grids)
        assert all(finer <= coarser * (1 + 1e-5) + 1e-12 for coarser, finer in pairwise(found))


@settings(max_examples=25, deadline=None)
@given(TENSORS)
def test_ranges_are_never_worse_than_max_abs(tensor):
    x = make(*tensor)
    grids = weight_grids(x)
    for bits in range(2, 9):
        high = 2 ** (bits - 1) - 1
        scale = (x.abs().amax(1, keepdim=True) / high).clamp(min=1e-30)
        max_abs = ((x / scale).round().clamp(-high, high) * scale - x).square().mean()
        assert errors(x, grids)[bits - 1] <= float(max_abs) * (1 + 1e-5) + 1e-12


@settings(max_examples=25, deadline=None)
@given(TENSORS, st.sampled_from([1, 7, 3000]), st.integers(-30, 30), st.booleans())
def test_ranges_are_those_of_trying_every_candidate(tensor, size, exponent, whole):
    module = importlib.import_module("quantenv.quantization.ranges")
    x = make(*tensor, shape=(size,)) * 2.0**exponent
    x = (x / x.abs().max() * 3).round() if whole else x  # then many candidates err alike
    found = activation_grids(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Ordered, "candidates", lambda _self, _levels, scales, _points: torch.arange(len(scales)))
        assert activation_grids(x) == found


def test_mse_ranges_beat_max_abs_by_far_at_few_bits_on_heavy_tails():
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    scale = x.abs().max() / 7
    max_abs = ((x / scale).round().clamp(-7, 7) * scale - x).square().mean()
    assert errors(x, weight_grids(x))[3] < float(max_abs) / 2


def test_one_bit_scale_is_the_closed_form_optimum():
    x = make(3, "normal")
    grid = weight_grids(x)[1]
    torch.testing.assert_close(grid.scale[:, 0], x.abs().mean(1))
    best = (quantize(x, grid) - x).square().mean(1)
    for factor in (0.9, 1.1):
        worse = torch.where(x >= 0, 1.0, -1.0) * grid.scale * factor
        assert ((worse - x).square().mean(1) > best).all()


def test_gaussian_two_bit_error_is_near_the_published_optimum():
    # Max (1960), table II: the best uniform 3-level quantizer of a unit Gaussian has squared error 0.1902.
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(1))
    assert abs(errors(x, weight_grids(x))[1] - 0.1902) < 0.004


def test_zero_tensors_stay_exactly_zero():
    x = torch.zeros(2, 5)
    for grids in (weight_grids(x), activation_grids(x)):
        for bits in range(1, 9):
            assert torch.isfinite(grids[bits].scale).all()
            assert torch.equal(quantize(x, grids[bits]), x)


def test_a_zero_channel_does_not_disturb_its_neighbours():
    x = make(0, "normal")
    alone = weight_grids(x[1:])
    x[0] = 0
    for bits, grid in weight_grids(x).items():
        torch.testing.assert_close(grid.scale[1:], alone[bits].scale)


def test_constant_tensors_are_represented():
    for value in (3.7, -0.02, 1e-20):
        x = torch.full((2, 6), value)
        for grids in (weight_grids(x), activation_grids(x)):
            for bits in range(1, 9):
                torch.testing.assert_close(quantize(x, grids[bits]), x, rtol=1e-5, atol=0)


def test_non_negative_data_use_every_code_from_zero():
    grids = activation_grids(make(0, "relu"))
    assert all((grids[bits].low, grids[bits].high) == (0, 2**bits - 1) for bits in range(1, 9))


def test_signed_data_have_zero_on_the_grid():
    grids = activation_grids(make(0, "normal") + 1)
    assert grids[1].sign
    assert all(grids[bits].low < 0 <= grids[bits].high for bits in range(2, 9))


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**-60, 2.0**60, 2.0**120])
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_grids_follow_the_unit_of_values_to_the_bit(unit, kind):
    x = make(3, kind)
    for found, wanted in (
        (weight_grids(x * unit), weight_grids(x)),
        (activation_grids(x * unit), activation_grids(x)),
    ):
        for bits, grid in wanted.items():
            assert torch.equal(found[bits].scale, grid.scale * unit)
            assert (found[bits].low, found[bits].high) == (grid.low, grid.high)
    for bits, book in codebooks(x).items():
        again = codebooks(x * unit)[bits]
        assert torch.equal(again.scale, book.scale * unit)
        assert torch.equal(again.values, book.values)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, 1e30, 3.4e38, -3.4e38])
def test_constants_are_kept(value):
    x = torch.full((2, 50), value)
    for grids in (weight_grids(x), activation_grids(x)):
        for bits in range(2, 9):
            assert torch.allclose(quantize(x, grids[bits]), x, rtol=1e-5, atol=0)


def test_values_too_small_for_a_step_become_zero():
    x = torch.full((2, 50), 1e-42)  # a denormal number
    for grids in (weight_grids(x), activation_grids(x)):
        for grid in grids.values():
            assert torch.isfinite(quantize(x, grid)).all()
            assert quantize(x, grid).abs().max() < 1e-37
    values = torch.cat([torch.randn(2, 50), torch.randn(2, 50) * 1e-42, torch.zeros(2, 50)])
    assert quantize(values, weight_grids(values)[8])[:2].sub(values[:2]).abs().max() < 0.02


def images(size, pattern):
    """Makes images (64, 2, size, size) whose values are told by their place: a border, stripes, a channel, a pixel."""
    x = torch.randn(64, 2, size, size, generator=torch.Generator().manual_seed(0)).abs()
    if pattern == "border":
        x[..., :5] = x[..., -5:] = x[..., :5, :] = x[..., -5:, :] = 0
    elif pattern == "columns":
        x[..., ::4] *= 6
    elif pattern == "rows":
        x[..., ::4, :] *= 6
    elif pattern == "channel":
        x[:, 1] *= 6
    else:
        x[:, :, size // 2, size // 2] *= 8
    return x


@pytest.mark.parametrize("pattern", ["border", "columns", "rows", "channel", "pixel"])
@pytest.mark.parametrize("size", [32, 60, 64])
def test_ranges_are_those_of_all_values_wherever_they_stand(size, pattern):
    x = images(size, pattern)
    network = nn.Sequential(nn.Conv2d(2, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    calibration = calibrate(network, x)
    grids = calibration.site_grids[calibration.sites[0].node]
    for bits in (2, 4):
        steps = torch.linspace(0.1, 1, 91) * x.max() / (2**bits - 1)
        least = min(float((quantize(x, Grid(bits, step, 0, 2**bits - 1)) - x).square().mean()) for step in steps)
        assert errors(x, grids)[bits - 1] < 1.15 * least


def test_samples_are_spread_over_every_period():
    values = torch.arange(1 << 20)
    assert torch.equal(spread(values, 1 << 20), values)
    found = spread(values, 1 << 14)
    assert len(found.unique()) == 1 << 14
    for period in (2, 3, 64, 1000, 1024, 4096):
        counts = torch.bincount(found % period, minlength=period) / (len(found) / period)
        assert counts.max() < 1.6 or period > 1024
        assert counts.min() > 0 or period > 1024


SIZES = (8, 15, 16, 31, 32, 36, 63, 64, 112, 113, 224)


@pytest.mark.parametrize("samples", [512, 500, 65])
@pytest.mark.parametrize("channels", [1, 3, 16, 24, 64, 512])
def test_every_part_of_a_site_is_sampled_as_often_as_any_other(samples, channels):
    """Positions, rows, columns, channels and images: of those that 16 samples or more fall on, none has twice its share
    or less than half of it, whatever the size and the batches."""
    for size in (size for size in SIZES if channels * size**2 <= 3 * 224**2):
        features = channels * size**2
        places = torch.arange(features, dtype=torch.int32)  # as values: each tells its place within the sample
        found = torch.cat(
            [
                spread(places.expand(len(part), -1), MAX_SAMPLES, range(part[0], part[-1] + 1), samples)
                for part in torch.arange(samples).split(CALIBRATION_BATCH)
            ]
        )
        assert len(found) == min(MAX_SAMPLES, features * samples)
        row, column = found % size**2 // size, found % size
        for parts, count in ((found % size**2, size**2), (row, size), (column, size), (found // size**2, channels)):
            expected = len(found) / count
            if expected >= 16:
                counts = torch.bincount(parts, minlength=count) / expected
                assert 0.5 < counts.min() <= counts.max() < 2


@pytest.mark.parametrize("samples", [64, 65, 129, 512])
def test_calibration_samples_every_image_and_position(samples, monkeypatch):
    images, size = torch.arange(samples * 3 * 31 * 31, dtype=torch.float32).view(samples, 3, 31, 31), 31 * 31
    seen = []
    original = calibration_module.activation_grids
    monkeypatch.setattr(
        calibration_module,
        "activation_grids",
        lambda values, extremes: seen.append(values) or original(values, extremes),
    )
    calibrate(nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval(), images)
    places = seen[0].long()
    for parts, count in ((places // (3 * size), samples), (places // size % 3, 3), (places % size, size)):
        counts = torch.bincount(parts, minlength=count) / (len(places) / count)
        assert 0.5 < counts.min() <= counts.max() < 2


@pytest.mark.parametrize("bits", [4, 5])
def test_extremes_bound_ranges_but_do_not_count_as_samples(bits):
    # One value in 32,768 lies far out. Were each batch's extremes among the samples, they would pull the range along.
    x = torch.randn(512, 1, 64, 64, generator=torch.Generator().manual_seed(0)).abs()
    x.view(512, -1)[:, 7::2048] *= 6
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    calibration = calibrate(network, x)
    found = errors(x, calibration.site_grids[calibration.sites[0].node])[bits - 1]
    steps = torch.linspace(0.05, 1, 191) * x.max() / (2**bits - 1)
    assert found < 1.05 * min(
        float((quantize(x, Grid(bits, each, 0, 2**bits - 1)) - x).square().mean()) for each in steps
    )
