import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.quantization.adaround import adaround, by_groups, errors, neighbours
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import Grid, quantize
from quantenv.quantization.moments import InputMoments, patches
from quantenv.quantization.ranges import weight_grids
from quantenv.quantization.schemes import parse_scheme
from tests.networks import branched

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def correlated(seed, size, groups=1):
    """Second moments of inputs that have much in common, as those of a ReLU network's layers have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, size, 3 * size, generator=generator)
    x = x + 2 * torch.randn(groups, 1, 3 * size, generator=generator) + 1
    return torch.bmm(x, x.transpose(1, 2)) / x.shape[2]


def least_errors(weight, grid, moments):
    """The error of the best of all ways to round each output channel up or down, by trying them all."""
    low, high = (each.double() * grid.scale.double() for each in neighbours(weight, grid))
    choices = torch.tensor(list(itertools.product((False, True), repeat=weight.shape[1])))
    change = torch.where(choices, high[:, None], low[:, None]) - weight.double()[:, None]
    return errors(change, moments.double()).amin(1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_it_comes_close_to_the_best_of_all_roundings(bits):
    problems = 40  # channels of a grouped convolution, each with inputs of its own
    weight = torch.randn(problems, 6, generator=torch.Generator().manual_seed(bits))
    grid, moments = weight_grids(weight)[bits], torch.cat([correlated(seed, 6) for seed in range(problems)])
    best = least_errors(weight, grid, moments)
    reached, nearest = (
        errors((each - weight)[:, None].double(), moments.double())[:, 0]
        for each in (adaround(weight, grid, moments) * grid.scale, quantize(weight, grid))
    )
    assert (reached >= best * (1 - 1e-4)).all()
    assert (reached <= best * (1 + 1e-4)).sum() >= 0.85 * problems
    assert reached.sum() <= 1.1 * best.sum()
    assert nearest.sum() > 2 * best.sum()  # so that there was something to gain


@given(
    seed=st.integers(0, 2**20),
    bits=st.integers(1, 8),
    shape=st.sampled_from([(3, 5), (4, 2, 3, 3), (4, 1, 3, 1)]),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
)
@settings(max_examples=25, deadline=None)
def test_weights_lie_on_the_grid_within_a_step_and_no_channel_is_worse_than_to_nearest(seed, bits, shape, unit):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * unit
    groups = 4 if shape == (4, 1, 3, 1) else 1
    grid, moments = weight_grids(weight)[bits], correlated(seed, weight[0].numel(), groups) / unit
    codes = adaround(weight, grid, moments)
    low, high = neighbours(weight, grid)
    assert torch.equal(codes, codes.round())
    assert ((codes == low) | (codes == high)).all()
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high
    inside = (weight / grid.scale).abs() <= grid.high
    assert ((codes * grid.scale - weight).abs() / grid.scale)[inside].max() <= (2 if grid.sign else 1) + 1e-5
    found, nearest = (
        errors(by_groups((each - weight).double(), groups), moments.double())
        for each in (codes * grid.scale, quantize(weight, grid))
    )
    assert (found <= nearest * (1 + 1e-5)).all()


def test_independent_inputs_leave_rounding_to_nearest():
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    grid = weight_grids(weight)[3]
    assert torch.equal(adaround(weight, grid, torch.eye(20)[None]) * grid.scale, quantize(weight, grid))


def test_zeros_stay_zeros_and_equal_inputs_give_equal_results():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    weight[1] = 0
    grid, moments = weight_grids(weight)[2], correlated(3, 6)
    state = torch.random.get_rng_state()
    first = adaround(weight, grid, moments)
    assert not first[1].any()
    assert torch.equal(first, adaround(weight, grid, moments))
    assert torch.equal(state, torch.random.get_rng_state())
    one = Grid(grid.bits, grid.scale[2:3], grid.low, grid.high)
    assert torch.equal(first[2:3], adaround(weight[2:3], one, moments))  # a channel's rounding is its own


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, 2, 1, groups=2, bias=False),
        nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2, groups=4, bias=False),
        nn.Conv2d(3, 2, 1, bias=False),
    ],
)
def test_patches_are_what_a_convolution_multiplies(layer):
    x = torch.randn(5, layer.in_channels, 9, 8)
    with torch.no_grad():
        seen = patches(layer, x, 10**6)
        outputs = torch.matmul(by_groups(layer.weight, layer.groups), seen).reshape(layer.out_channels, -1)
        torch.testing.assert_close(outputs, layer(x).transpose(0, 1).flatten(1), atol=1e-5, rtol=1e-5)
    assert patches(layer, x, 7).shape[2] == 7


@pytest.mark.parametrize("scheme", ["linear+adaround", "linear+adaround+bias"])
def test_moments_tell_the_error_of_real_outputs(scheme, monkeypatch):
    monkeypatch.setattr("quantenv.quantization.moments.DAMPING", 0.0)
    calibration = calibrate(branched(), INPUTS, parse_scheme(scheme))
    moments = InputMoments(calibration)
    for layer in calibration.modules:
        module = calibration.graph.get_submodule(layer.name)
        seen = []
        handle = module.register_forward_hook(lambda module, arguments, output, seen=seen: seen.append(arguments[0]))
        with torch.no_grad():
            calibration.graph(INPUTS)
            handle.remove()
            change = quantize(module.weight, calibration.linear_grids[layer.name][3]) - module.weight
            outputs = torch.matmul(by_groups(change, layer.groups), patches(module, seen[0], 10**7)).flatten(0, 1)
        wanted = outputs.var(1, correction=0) if "bias" in scheme else outputs.square().mean(1)
        found = errors(by_groups(change, layer.groups), moments.of(layer.name)).flatten()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_moments_are_the_same_however_many_are_kept_at_once(monkeypatch):
    calibration = calibrate(branched(), INPUTS, parse_scheme("linear+adaround"))
    together = InputMoments(calibration)
    monkeypatch.setattr("quantenv.quantization.moments.KEPT_BYTES", 1)
    alone = InputMoments(calibration)
    for layer in (*calibration.modules, calibration.modules[0]):
        assert torch.equal(together.of(layer.name), alone.of(layer.name))
