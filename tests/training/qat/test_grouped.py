"""Channel groups in every network: equal bits change nothing, unequal ones are each channel's own."""

import dataclasses

import numpy as np
import pytest
import torch

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.prefix import PrefixRunner
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.calibration import grouped_rounding
from quantenv.quantization.formats import GroupedGrid, quantize
from quantenv.quantization.ranges import weight_grids
from quantenv.quantization.schemes import parse_scheme
from quantenv.quantization.switched import SwitchedLayer
from quantenv.sensitivity import group_channels
from quantenv.tasks import get_task
from quantenv.training.qat.base import LSQQuantizer
from quantenv.training.qat.grouped import GroupedQuantizer
from quantenv.training.qat.network import reestimate_trained, trainable_network
from tests.networks import branched

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))
#: Three groups of two layers, two of a depthwise one and of the classifier; two layers are whole.
CHANNELS = {
    "stem": [[7, 0, 3], [1, 2], [4, 5, 6]],
    "block.depthwise": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "left": [[5], [0, 1], [2, 3, 4]],
    "head": [[4, 1], [0, 2, 3]],
}
WHOLE = calibrate(branched(), INPUTS)
GROUPED = calibrate(branched(), INPUTS, channels=CHANNELS)
#: Weight bits of stem 3, grouped, depthwise 2, left 3, right, head 2; activation bits of the layers.
MIXED = [8, 2, 5, 4, 1, 6, 7, 2, 3, 5, 2, 6]
ACTIVATIONS = [8, 8, 8, 7, 6, 6, 5, 5, 5, 4, 8, 8]


def mixed(bits=MIXED):
    return Allocation.make(GROUPED.layers, bits, ACTIVATIONS)


def of_whole(weights):
    return Allocation.make(WHOLE.layers, weights, [8, 7, 6, 5, 4, 8])


def groups_of(name, bits=MIXED):
    """The weight bits of a layer's groups, beside their channels."""
    return [
        (list(layer.channels), bits[index])
        for index, layer in enumerate(GROUPED.layers)
        if layer.name.startswith(f"{name}#")
    ]


def test_modules_stay_whole():
    assert [layer.name for layer in GROUPED.modules] == [layer.name for layer in WHOLE.layers]
    assert GROUPED.modules == WHOLE.layers
    assert GROUPED.indices["left"] == (6, 7, 8)
    assert GROUPED.channels["right"] == ()
    assert WHOLE.modules == WHOLE.layers


@pytest.mark.parametrize("network", [QuantizedNetwork, IntegerNetwork])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_equal_bits_in_all_groups_are_the_whole_layer_to_the_bit(network, bits):
    whole, grouped = network(WHOLE), network(GROUPED)
    whole.select(of_whole(bits))
    grouped.select(Allocation.make(GROUPED.layers, bits, ACTIVATIONS))
    assert torch.equal(whole(INPUTS), grouped(INPUTS))


@pytest.mark.parametrize("scheme", ["linear", "linear+bias", "linear+equalisation+bias+batch-norm"])
def test_every_channel_is_rounded_as_in_a_whole_layer_of_its_bits(scheme):
    whole_calibration = calibrate(branched(), INPUTS, parse_scheme(scheme))
    whole = QuantizedNetwork(whole_calibration)
    grouped = QuantizedNetwork(calibrate(branched(), INPUTS, parse_scheme(scheme), CHANNELS))
    grouped.select(mixed())
    for name in CHANNELS:
        layer = grouped.module.get_submodule(name)
        for channels, bits in groups_of(name):
            whole.select(Allocation.make(whole_calibration.layers, bits, [8, 7, 6, 5, 4, 8]))  # biases follow both
            expected = whole.module.get_submodule(name)
            assert torch.equal(layer.weight[channels], expected.weight[channels])
            assert torch.equal(layer.bias[channels], expected.bias[channels])


def test_the_network_computes_with_these_weights():
    whole, grouped = QuantizedNetwork(WHOLE), QuantizedNetwork(GROUPED)
    parts = []
    for name in CHANNELS:
        for channels, bits in groups_of(name):
            whole.select(of_whole(bits))
            layer = whole.module.get_submodule(name)
            weight = quantize(layer.float_weight, weight_grids(layer.float_weight)[bits])[channels]
            parts.append((layer, channels, weight, layer.bias[channels]))
    whole.select(of_whole([8, 4, 8, 8, 5, 8]))
    for name in CHANNELS:
        layer = whole.module.get_submodule(name)
        layer.weight, layer.bias = layer.weight.clone(), layer.bias.clone()
    for layer, channels, weight, bias in parts:
        layer.weight[channels], layer.bias[channels] = weight, bias
    grouped.select(mixed())
    assert torch.equal(whole(INPUTS), grouped(INPUTS))


def test_integers_compute_what_floats_compute():
    floats, integers = QuantizedNetwork(GROUPED), IntegerNetwork(GROUPED)
    for network in (floats, integers):
        network.select(mixed())
    expected = floats(INPUTS)
    error = (integers(INPUTS) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.median() < 1e-5  # most samples meet no rounding tie
    assert error.mean() < 0.05


def test_predictions_of_both_backends_agree_on_digits():
    task = group_channels(get_task("digits"), 4)
    floats, integers = (backend(calibrate_task(task)) for backend in (QuantizedNetwork, IntegerNetwork))
    generator = np.random.default_rng(0)
    inputs = task.splits["search"].inputs
    for _ in range(3):
        allocation = Allocation.make(task.layers, generator.integers(2, 9, len(task.layers)).tolist(), 8)
        floats.select(allocation)
        integers.select(allocation)
        assert (floats(inputs).argmax(1) == integers(inputs).argmax(1)).float().mean() >= 0.98


def test_mixtures_are_forgotten_and_made_again(monkeypatch):
    for limit in ("LEAST_MIXTURES", "MOST_MIXTURES"):
        monkeypatch.setattr(f"quantenv.quantization.switched.{limit}", 2)
    networks = [QuantizedNetwork(GROUPED), IntegerNetwork(GROUPED)]
    first = [network.select(mixed()) or network(INPUTS[:8]) for network in networks]
    generator = np.random.default_rng(0)
    for _ in range(40):
        for network in networks:
            network.select(mixed(generator.integers(1, 9, len(MIXED)).tolist()))
    for network, expected in zip(networks, first, strict=True):
        layers = [module for module in network.module.modules() if isinstance(module, SwitchedLayer)]
        assert all(len(layer.cache) <= 8 + 2 for layer in layers)
        network.select(mixed())
        assert torch.equal(network(INPUTS[:8]), expected)


def test_shared_prefixes_give_the_same_logits():
    network, alone = QuantizedNetwork(GROUPED), QuantizedNetwork(GROUPED)
    generator = np.random.default_rng(0)
    allocations = [mixed([*MIXED[:6], *generator.integers(2, 9, 6).tolist()]) for _ in range(6)]
    settings = sorted(network.settings(allocations))
    outputs = [logits.clone() for logits in PrefixRunner(network).run(INPUTS[:8], settings)]
    for setting, logits in zip(settings, outputs, strict=True):
        alone.switch(setting)
        assert torch.equal(alone(INPUTS[:8]), logits)


def test_allocations_of_whole_layers_or_of_other_groups_are_refused():
    network = QuantizedNetwork(GROUPED)
    with pytest.raises(AllocationError, match="have no bits"):
        network.select(of_whole(4))
    other = calibrate(branched(), INPUTS[:4], channels=CHANNELS | {"head": [[0, 1], [2, 3, 4]]})
    with pytest.raises(AllocationError, match=r"'head#0', 'head#1' stand for other"):
        network.select(Allocation.make(other.layers, 4))


# Training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lsq", "mid-rise", "linear", "dorefa"])
def test_training_starts_from_the_post_training_network(kind):
    network = QuantizedNetwork(GROUPED)
    network.select(mixed())
    with torch.no_grad():
        trainable = trainable_network(GROUPED, mixed(), kind)
        layer = trainable.get_submodule("left")
        for channels, bits in groups_of("left"):
            for channel in layer.weight_quantizer(layer.weight)[channels]:
                assert len(channel.unique()) <= 2**bits
            levels = layer.weight_quantizer.levels()[channels]
            assert all(len(row.unique()) <= 2**bits for row in levels)
        if kind not in ("mid-rise", "dorefa"):  # whose levels are others
            torch.testing.assert_close(trainable(INPUTS[:8]), network(INPUTS[:8]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_equal_bits_train_as_the_whole_layer_does(bits):
    whole = trainable_network(WHOLE, of_whole(bits))
    grouped = trainable_network(GROUPED, Allocation.make(GROUPED.layers, bits, ACTIVATIONS))
    for network in (whole, grouped):
        network(INPUTS).square().sum().backward()
    assert whole.state_dict().keys() == grouped.state_dict().keys()
    for (name, one), (_, other) in zip(whole.named_parameters(), grouped.named_parameters(), strict=True):
        assert torch.equal(one, other), name
        assert torch.equal(one.grad, other.grad), name


def test_a_grouped_quantizer_is_each_group_s_quantizer():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    channels = tuple(map(torch.tensor, ([5, 0], [1, 4], [2, 3])))
    grid = grouped_rounding(weight_grids(weight), channels, (2, 1, 5))
    assert isinstance(grid, GroupedGrid)
    quantizer = GroupedQuantizer(grid, 36, LSQQuantizer)
    x = weight.clone().requires_grad_()
    rounded = quantizer(x)
    assert torch.equal(rounded, quantize(weight, grid))
    rounded.square().sum().backward()
    for each, part, group in zip(channels, grid.grids, quantizer.quantizers, strict=True):
        alone, y = LSQQuantizer(part, 36), weight[each].clone().requires_grad_()
        alone(y).square().sum().backward()
        assert torch.equal(x.grad[each], y.grad)
        assert torch.equal(group.scale.grad, alone.scale.grad)
    assert quantizer.bits == 5
    assert quantizer.levels().shape == (6, 31)


def test_every_weight_and_step_receives_a_gradient():
    network = trainable_network(GROUPED, mixed())
    network(INPUTS).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_batch_norms_can_be_estimated_again_for_groups():
    scheme = parse_scheme("linear+batch-norm")
    calibration = calibrate(branched(), INPUTS, scheme, CHANNELS)
    network = trainable_network(calibration, mixed()).eval()
    layer = network.get_submodule("stem")
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    gain, shift = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)
    with torch.no_grad():
        expected = layer(x) * gain[:, None, None] + shift[:, None, None]
        layer.rescale(gain, shift)
        unit = layer.weight_quantizer.unit().view(-1, 1, 1) * network.get_submodule("site_0").unit()
        assert ((layer(x) - expected).abs() <= 1.01 * unit).all()  # biases are rounded before and after
        reestimate_trained(network, calibration)


def test_codebooks_are_refused():
    with pytest.raises(QuantenvError, match=r"one codebook for a layer.*use scheme 'linear'"):
        calibrate(branched(), INPUTS[:4], parse_scheme("k-means"), CHANNELS)
    with pytest.raises(QuantenvError, match=r"'k-means' has one codebook.*use 'lsq'"):
        trainable_network(GROUPED, mixed(), "k-means")


def test_calibrations_can_be_replaced_without_stale_groups():
    whole = dataclasses.replace(GROUPED, layers=WHOLE.layers)
    assert whole.channels == dict.fromkeys(whole.indices, ())
