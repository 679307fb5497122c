"""A trained layer is integer hardware's: whole numbers, a bias among them, the same bits however it is run."""

import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import Grid, activation_bounds, weight_bounds
from quantenv.training.qat.layer import TrainableLayer
from quantenv.training.qat.network import trainable_network
from quantenv.training.qat.quantizers import activation_quantizer, weight_quantizer
from tests.networks import branched
from tests.other_machines import FEW, answers, same_everywhere

INPUTS = torch.randn(40, 6, 5, 5, generator=torch.Generator().manual_seed(0))


def made(weights="lsq", activations="lsq", bits=(3, 4), bias=None, weight=None, kind="convolution", scale=0.11):
    """A layer, what stores its input, and its float bias."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Conv2d(6, 4, 3, padding=1) if kind == "convolution" else nn.Linear(6, 4)
    weight = torch.randn(layer.weight.shape, generator=generator) if weight is None else weight
    bias = torch.randn(4, generator=generator) if bias is None else bias
    grid = Grid(bits[0], torch.full((4, *[1] * (weight.dim() - 1)), scale), *weight_bounds(bits[0]))
    source = activation_quantizer(activations)(Grid(bits[1], torch.tensor(0.3), *activation_bounds(bits[1], 3)), 6)
    found = TrainableLayer(layer, weight, bias, weight_quantizer(weights)(grid, 54), source, None)
    return found.eval(), source.eval(), bias


def whole(values, unit):
    numbers = (values.double() / unit.double()).round().long()
    torch.testing.assert_close(numbers * unit.double(), values.double(), rtol=1e-5, atol=1e-7)
    return numbers


@pytest.mark.parametrize("kind", ["convolution", "linear"])
@pytest.mark.parametrize("activations", ["lsq", "linear", "pact"])
@pytest.mark.parametrize("bits", [(1, 1), (2, 3), (8, 8)])
@pytest.mark.parametrize(("weights", "odd"), [("lsq", False), ("linear", False), ("mid-rise", True), ("dorefa", True)])
def test_it_is_the_sum_of_whole_numbers_and_of_a_whole_bias(weights, odd, bits, activations, kind):
    layer, source, bias = made(weights, activations, bits, kind=kind)
    inputs = INPUTS if kind == "convolution" else INPUTS[..., 0, 0]
    with torch.no_grad():
        stored, weight = source(inputs), layer.weight_quantizer(layer.weight)
        found = layer(stored)
        levels = layer.weight_quantizer.levels()
    span = levels[:, -1] - levels[:, 0]
    step = span / 2 / (levels.shape[1] - 1 if odd else weight_bounds(bits[0])[1])  # of odd ones half a distance
    numbers = whole(weight, step.view(-1, *[1] * (weight.dim() - 1)))
    assert not odd or (numbers % 2 == 1).all()
    unit = step.double() * float(source.scale.detach().abs())
    held = torch.clamp((bias.double() / unit).round(), -(2**31) + 1, 2**31 - 1)
    read = whole(stored, source.scale.detach().abs()).double()
    sums = (
        F.conv2d(read, numbers.double(), held, padding=1)
        if kind == "convolution"
        else F.linear(read, numbers.double(), held)
    )
    shape = (-1, 1, 1) if kind == "convolution" else (-1,)
    torch.testing.assert_close(found.double(), sums * unit.view(shape), rtol=1e-6, atol=1e-5)
    layer.train()
    torch.testing.assert_close(layer(stored).detach(), found, rtol=1e-4, atol=1e-4)
    assert ((layer.bias - bias) == 0).all()  # what is trained is not rounded


@pytest.mark.parametrize(("weights", "activations"), [("lsq", "lsq+")])
def test_where_sums_lie_on_no_grid_the_bias_stays(weights, activations):
    layer, source, bias = made(weights, activations)
    with torch.no_grad():
        stored = source(INPUTS)
        expected = F.conv2d(stored, layer.weight_quantizer(layer.weight), bias, padding=1)
        assert torch.equal(layer(stored), expected)


def test_codebooks_keep_the_bias():
    calibration = calibrate(branched(), torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    network = trainable_network(calibration, Allocation.make(calibration.layers, 3, 4), "k-means").eval()
    layer, seen = network.get_submodule("head"), []
    layer.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        network(calibration.inputs)
        (read, found), weight = seen[0], layer.weight_quantizer(layer.weight)
        read = read if layer.requantizer is None else layer.requantizer(read)
        torch.testing.assert_close(found, F.linear(read, weight, layer.bias))


def test_gradients_are_straight_through_in_the_bias_and_none_through_its_rounding():
    upstream = torch.randn(40, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    steps = []
    for bias in (torch.tensor([0.3, -0.2, 0.017, 5.0]), torch.zeros(4)):
        layer, source, _ = made(bias=bias)
        (layer(source(INPUTS)) * upstream).sum().backward()
        torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 2, 3)))
        steps.append((layer.weight_quantizer.scale.grad, source.scale.grad, layer.weight.grad))
    assert all(map(torch.equal, *steps))  # a bias has no say in them, rounded or not


def test_biases_are_of_32_bits():
    layer, source, _ = made(bias=torch.tensor([1e6, -1e6, 0.1, 0.0]), scale=1e-6)
    with torch.no_grad():
        stored = source(INPUTS)
        found = layer(stored) - F.conv2d(stored, layer.weight_quantizer(layer.weight), padding=1)
    largest = (2**31 - 1) * 1e-6 * 0.3
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.tensor([largest, -largest, 0.1, 0.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-37])
def test_a_channel_of_zeros_is_its_bias(scale):
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    layer, source, bias = made(weight=weight)
    with torch.no_grad():
        layer.weight_quantizer.scale[2] = scale
        assert (layer(source(INPUTS))[:, 2] == bias[2]).all()


def test_sums_that_single_precision_does_not_hold_are_exact():
    weight = torch.full((2, 2048, 3, 3), 127.0)
    layer = nn.Conv2d(2048, 2, 3)
    grid = Grid(8, torch.ones(2, 1, 1, 1), *weight_bounds(8))
    source = activation_quantizer("linear")(Grid(8, torch.tensor(1.0), 0, 255), 1)
    found = TrainableLayer(layer, weight, None, weight_quantizer("linear")(grid, 1), source, None).eval()
    inputs = torch.full((1, 2048, 3, 3), 255.0)
    inputs[0, 0, 0, 0] = 254
    with torch.no_grad():
        assert found(inputs).flatten().tolist() == [float(torch.tensor(float(2048 * 9 * 127 * 255 - 127)))] * 2


def evaluated():
    """A hash of what a layer puts out, alone and in batches, in both layouts."""
    torch.manual_seed(0)
    grid = Grid(8, torch.rand(32, 1, 1, 1) * 0.01, *weight_bounds(8))
    source = activation_quantizer("lsq")(Grid(8, torch.tensor(0.021), 0, 255), 1)
    layer = nn.Conv2d(48, 32, 3, padding=1)
    weight, bias, inputs = torch.randn(32, 48, 3, 3) * 0.3, torch.randn(32), torch.rand(24, 48, 9, 9) * 5
    layer = TrainableLayer(layer, weight, bias, weight_quantizer("lsq")(grid, 1), source, None).eval()
    hashes = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for batch in (1, 5, 24):
            with torch.inference_mode():
                parts = inputs.contiguous(memory_format=layout).split(batch)
                outputs = torch.cat([layer(source(part)) for part in parts]).contiguous()
            hashes.append(hashlib.sha256(outputs.numpy().tobytes()).hexdigest())
    assert len(set(hashes)) == 1
    return hashes[0]


def test_what_is_evaluated_depends_on_no_batch_layout_thread_or_processor():
    assert same_everywhere(answers(evaluated, machines=FEW)["evaluated"]) == evaluated()


def test_training_changes_nothing_that_others_start_from():
    """Operations that stay in float are trained, too: in a copy."""
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4)).eval()
    calibration = calibrate(network, INPUTS[..., 0, 0])
    before = copy.deepcopy(calibration.graph.state_dict())
    trained = trainable_network(calibration, Allocation.make(calibration.layers, 4, 4))
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    start = {name: value.detach().clone() for name, value in trained.named_parameters()}
    trained(INPUTS[..., 0, 0]).square().sum().backward()
    optimizer.step()
    assert not torch.equal(trained.get_parameter("1.weight"), start["1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in calibration.graph.state_dict().items())
    assert not any(module.training for module in calibration.graph.modules())
