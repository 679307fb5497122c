import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.backends.accumulators import FloatAccumulators, whole_weights
from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.integer_layer import IntegerLayer
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.backends.reestimation import ChannelSums
from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.corrections import EPSILON
from quantenv.quantization.requantization import EXACT
from quantenv.quantization.schemes import parse_scheme
from quantenv.quantization.switched import SwitchedLayer
from tests.networks import BACKENDS, branched

INPUTS = torch.randn(160, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SCHEME = parse_scheme("linear+batch-norm")


def network_of(seed, depthwise, groups, width=8):
    """Convolutions of all kinds, then linear layers, with and without a batch norm, around a residual add."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.Conv2d(width, width, 3, padding=1, groups=width if depthwise else groups)
        network = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            middle,
            nn.BatchNorm2d(width),
            nn.SiLU() if seed % 2 else nn.ReLU(),
            nn.Conv2d(width, 4, 1),
            nn.Flatten(),
            nn.Linear(4 * 49, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, 5),
        )
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, each in first.items():
        assert torch.equal(each.gain, second[name].gain), name
        assert torch.equal(each.bias, second[name].bias), name


def random_allocations(layers, count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Allocation.make(layers, rng.integers(1, 9, len(layers)).tolist(), rng.choice([1, 2, 8], len(layers)).tolist())
        for _ in range(count)
    ]


@given(st.lists(st.integers(-(1 << 24), 1 << 24), min_size=1, max_size=40), st.integers(1, 5))
def test_sums_are_exact(numbers, pieces):
    sums = ChannelSums(1)
    column = torch.tensor(numbers, dtype=torch.float32)[:, None]
    for part in column.tensor_split(pieces):
        sums.add(part)
    mean, variance = sums.mean_and_variance()
    exact = Fraction(sum(numbers), len(numbers))
    assert float(mean) == float(exact)
    wanted = Fraction(sum(each * each for each in numbers), len(numbers)) - exact**2
    assert abs(Fraction(float(variance)) - wanted) <= Fraction(1, 1 << 50) * (wanted + exact**2)


def test_squares_of_the_largest_numbers_overflow_nothing():
    sums, numbers = ChannelSums(2), torch.tensor([[1 << 24, -(1 << 24)]]).float().expand(3 << 14, 2)
    for _ in range(40):
        sums.add(numbers)
    mean, variance = sums.mean_and_variance()
    assert mean.tolist() == [1 << 24, -(1 << 24)]
    assert variance.tolist() == [0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [(1, 8), (2, 2), (4, 1), (8, 8)])
def test_maps_are_those_of_whole_numbers_summed_in_numpy(backend, bits, monkeypatch):
    seen = {}

    def sums(layer, held):
        seen.setdefault(layer, []).append(layer._storage.numbers(held, layer._stored or layer._input))
        return original(layer, held)

    original = IntegerLayer.sums
    monkeypatch.setattr(IntegerLayer, "sums", sums)
    calibration = calibrate(network_of(2, False, 2), INPUTS, SCHEME)
    network = backend(calibration)
    seen.clear()
    network._reestimation._latest = [], []  # those of 8 bits, which it begins with
    (maps,) = network.maps([Allocation.make(calibration.layers, *bits)])
    assert [layer.name for layer in seen] == list(maps) == ["0", "3", "8"]
    for layer, held in seen.items():
        module = calibration.graph.get_submodule(layer.name)
        stored = calibration.site_grids[calibration.site_of(layer.name).node][bits[1]]
        grid = calibration.linear_grids[layer.name][bits[0]]
        numbers = torch.cat(held).long()
        weights = torch.where(module.weight >= 0, 1, -1) if bits[0] == 1 else (module.weight / grid.scale).round()
        weights = weights.clamp(grid.low, grid.high).long()
        if isinstance(module, nn.Conv2d):
            size, stride, padding = module.kernel_size, module.stride, module.padding
            columns = F.unfold(numbers.double(), size, padding=padding, stride=stride).long()  # (N, C * k * k, P)
            parts = zip(columns.chunk(module.groups, 1), weights.flatten(1).chunk(module.groups), strict=True)
            sums = np.concatenate([np.einsum("ok,nkp->onp", w.numpy(), x.numpy()) for x, w in parts])
            sums = sums.reshape(len(sums), -1)
        else:
            sums = (numbers.numpy() @ weights.numpy().T).T
        mean, variance = calibration.reestimated[layer.name]
        for channel, row in enumerate(sums):
            unit = float(grid.scale.flatten()[channel]) * float(stored.scale)
            center = sum(row.tolist()) / len(row)
            spread = sum(each * each for each in row.tolist()) / len(row) - center**2
            slack = EPSILON * float(variance[channel])
            gain = ((float(variance[channel]) + slack) / (spread * unit**2 + slack)) ** 0.5
            assert float(maps[layer.name].gain[channel]) == pytest.approx(gain, rel=1e-6)
            bias = float(mean[channel]) - gain * unit * center
            assert float(maps[layer.name].bias[channel]) == pytest.approx(bias, rel=1e-6, abs=1e-6)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 50), st.booleans(), st.sampled_from([1, 2, 4]), st.sampled_from([20, 60]))
def test_neither_backend_nor_batches_nor_neighbours_change_a_bit(seed, depthwise, groups, chunk):
    calibration = calibrate(network_of(seed, depthwise, groups), INPUTS, SCHEME)
    allocations = random_allocations(calibration.layers, 3, seed)
    expected = QuantizedNetwork(calibration).maps(allocations)
    for backend in BACKENDS:
        network = backend(calibration)
        network._reestimation._chunk = chunk
        for order in ([2], [1, 1, 0]):
            for found, index in zip(network.maps([allocations[index] for index in order]), order, strict=True):
                assert_equal(found, expected[index])


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_change_no_bit(backend):
    network = backend(calibrate(network_of(0, False, 1), INPUTS, SCHEME))
    allocation = random_allocations(network.calibration.layers, 1)
    (expected,) = network.maps(allocation)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert_equal(network.maps(allocation)[0], expected)
    finally:
        torch.set_num_threads(before)


def test_channel_groups_and_codebooks_have_the_same_maps_however_they_are_run():
    groups = {"stem": ((0, 2, 4, 6), (1, 3, 5, 7))}
    cases = [(parse_scheme("linear+bias+batch-norm"), groups, BACKENDS)]
    cases += [(parse_scheme("k-means+batch-norm"), None, [QuantizedNetwork])]
    for scheme, channels, backends in cases:
        calibration = calibrate(branched(), INPUTS, scheme, channels)
        allocation = Allocation.make(calibration.layers, [2, 5, *[3] * (len(calibration.layers) - 2)], 4)
        (expected,) = QuantizedNetwork(calibration).maps([allocation])
        for backend, chunk in itertools.product(backends, (7, 160)):
            network = backend(calibration)
            network._reestimation._chunk = chunk
            assert_equal(network.maps([allocation])[0], expected)


def test_allocations_that_agree_share_the_maps_of_what_agrees():
    calibration = calibrate(branched(), INPUTS, SCHEME)
    rows = [[4, 4, 4, 4, 4, 4], [4, 2, 4, 4, 4, 4], [4, 4, 4, 4, 4, 2], [2, 4, 4, 4, 4, 4]]
    maps = QuantizedNetwork(calibration).maps([Allocation.make(calibration.layers, row) for row in rows])
    assert list(maps[0]) == ["stem", "block.grouped"]  # those that had a batch norm
    stems, blocks = ([each[name] for each in maps] for name in maps[0])
    assert stems[0] is stems[1] is stems[2]
    assert blocks[0] is blocks[2]
    assert len({each.number for each in stems}) == 2
    assert len({each.number for each in blocks}) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_have_the_float_mean_and_variance_again(backend):
    calibration = calibrate(branched(), INPUTS[:128], SCHEME)
    network = backend(calibration)
    network.select(Allocation.make(calibration.layers, 2, 8))
    floats = QuantizedNetwork(calibration)
    floats.select(Allocation.make(calibration.layers, 2, 8))
    for name, (mean, variance) in calibration.reestimated.items():
        found = []
        handle = floats.module.get_submodule(name).register_forward_hook(
            lambda *each, found=found: found.append(each[2])
        )
        logits = floats(INPUTS[:128])
        handle.remove()
        output = found[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(output.mean(1), mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(output.var(1, correction=0), variance, rtol=1e-2, atol=1e-3)
    assert (network(INPUTS[:128]) - logits).norm() < 0.05 * logits.norm()  # but for rounding ties


def test_nothing_is_estimated_again_where_nothing_was_normalised():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).eval()
    calibration = calibrate(network, INPUTS, SCHEME)
    quantized = QuantizedNetwork(calibration)
    assert quantized.maps([Allocation.make(calibration.layers, 4)]) == [{}]
    assert torch.equal(quantized(INPUTS), QuantizedNetwork(calibrate(network, INPUTS))(INPUTS))


def wide(positive):
    """A linear layer of so many inputs that its accumulators may leave what float32 holds exactly."""
    network = nn.Sequential(nn.Linear(6000, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.rand(4, 6000, generator=torch.Generator().manual_seed(0)) - (not positive) * 0.5)
    return network, torch.rand(130, 6000, generator=torch.Generator().manual_seed(1)) + 3 * positive


@pytest.mark.parametrize("positive", [False, True])
def test_accumulators_beyond_single_precision_are_rounded_to_a_power_of_two(positive):
    network, inputs = wide(positive)
    calibration = calibrate(network, inputs, SCHEME)
    allocation = [Allocation.make(calibration.layers, 8)]
    (expected,) = QuantizedNetwork(calibration).maps(allocation)
    weights, grid = calibration.linear_grids["0"][8], calibration.site_grids[calibration.sites[0].node][8]
    numbers = (inputs[:128] / grid.scale).round().clamp(grid.low, grid.high).double()
    folded = calibration.graph.get_submodule("0").weight.detach()
    exact = numbers @ (folded / weights.scale).round().clamp(-127, 127).double().T
    assert (exact.abs().max() > 1 << 24) == positive
    unit = weights.scale.flatten().double() * grid.scale
    mean, variance = calibration.reestimated["0"]
    restored = exact * unit * expected["0"].gain + expected["0"].bias
    torch.testing.assert_close(restored.mean(0), mean.double(), rtol=0, atol=1e-6 * float((exact * unit).abs().max()))
    torch.testing.assert_close(restored.var(0, correction=0), variance.double(), rtol=1e-3, atol=0)
    assert_equal(IntegerNetwork(calibration).maps(allocation)[0], expected)


def test_accumulators_are_exact():
    calibration = calibrate(branched(), INPUTS, SCHEME)
    for layer in (each for each in QuantizedNetwork(calibration).module.modules() if isinstance(each, SwitchedLayer)):
        channels = layer.float_weight.shape[1] * layer.geometry.groups
        drawn = torch.randint(0, 256, (4, channels, 9, 9))
        drawn = drawn if layer.geometry.op.dims else drawn[..., 0, 0]
        for weight_bits, activation_bits in itertools.product((1, 4, 8), (1, 3, 8)):
            codes = drawn % 2**activation_bits if activation_bits > 1 else drawn % 2 * 2
            numbers = (codes + layer.source.grids[activation_bits].low).float()
            weight = whole_weights(layer, weight_bits).double()  # sums of whole numbers below 2**53 are exact
            if not layer.geometry.op.dims:
                expected = F.linear(numbers.double(), weight)
            else:
                of = layer.geometry
                expected = F.conv2d(numbers.double(), weight, None, of.stride, of.padding, of.dilation, of.groups)
            assert expected.abs().max() < EXACT
            in_float = FloatAccumulators(layer)
            in_float.select(weight_bits, layer.source.grids[activation_bits])
            assert torch.equal(in_float(numbers).double(), expected)
