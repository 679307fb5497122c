import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.graph.tracing import trace
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.corrections import bias_correction, mean_inputs, output_moments, reestimate
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import get_task
from quantenv.training.qat.network import trainable_network
from tests.digits import digits_under
from tests.networks import branched

INPUTS = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def outputs_of(module, name, inputs):
    """What a layer puts out, (N, O, ...)."""
    seen = []
    handle = module.get_submodule(name).register_forward_hook(lambda layer, arguments, output: seen.append(output))
    with torch.no_grad():
        module(inputs)
    handle.remove()
    return seen[0]


def test_statistics_are_those_of_all_inputs_at_once():
    graph = trace(branched())
    names = ["stem", "block.grouped", "head"]
    moments = output_moments(graph, names, INPUTS)
    assert torch.allclose(mean_inputs(graph, names, INPUTS)["stem"], INPUTS.mean(0, keepdim=True), atol=1e-6)
    for name in names:
        output = outputs_of(graph, name, INPUTS).transpose(0, 1).flatten(1)
        mean, variance = moments[name]
        torch.testing.assert_close(mean, output.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, output.var(1, correction=0), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in graph.modules())


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_corrected_biases_give_a_layer_the_float_mean(padding, groups):
    layer = nn.Conv2d(3, 6, 3, stride=2, padding=padding, groups=groups)
    rounded = (layer.weight.detach() * 5).round() / 5
    correction = bias_correction(layer, rounded, INPUTS.mean(0, keepdim=True))
    bias = layer.bias + correction
    found = F.conv2d(INPUTS, rounded, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    torch.testing.assert_close(found.mean((0, 2, 3)), layer(INPUTS).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_corrected_biases_of_linear_layers_too():
    layer, x = nn.Linear(7, 4), torch.randn(50, 3, 7)
    rounded = layer.weight.detach().round()
    bias = layer.bias + bias_correction(layer, rounded, x.mean(0, keepdim=True))
    torch.testing.assert_close(F.linear(x, rounded, bias).mean((0, 1)), layer(x).mean((0, 1)), rtol=1e-4, atol=1e-5)


def test_a_scheme_with_bias_corrects_the_first_layer_s_mean_to_the_accumulator_s_grid():
    plain, corrected = (calibrate(branched(), INPUTS, parse_scheme(name)) for name in ("linear", "linear+bias"))
    wanted = outputs_of(plain.graph, "stem", INPUTS).mean((0, 2, 3))
    errors = []
    for calibration in (plain, corrected):
        network = QuantizedNetwork(calibration)
        network.select(Allocation.make(calibration.layers, 2, 8))
        errors.append((outputs_of(network.module, "stem", INPUTS).mean((0, 2, 3)) - wanted).abs())
    stored = calibration.site_grids[calibration.sites[0].node][8]
    unit = calibration.linear_grids["stem"][2].scale.flatten() * stored.scale
    assert (errors[1] <= unit / 2 + 0.2 * errors[0].max()).all()  # the latter comes from the input's 8 bits
    assert (errors[0] > unit / 2 + 0.2 * errors[0].max()).any()


def test_reestimating_is_what_a_batch_norm_in_training_mode_does():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).train()
    network(INPUTS)
    with torch.no_grad():
        network[1].weight.uniform_(0.5, 2)
        network[1].bias.normal_()
        network[1].momentum = 1.0
        network(INPUTS)  # its running statistics are now those of the inputs
    network.eval()
    calibration = calibrate(network, INPUTS[:128])
    with torch.no_grad():
        network[0].weight.mul_(0.5).add_(0.1)  # stands for rounding: unlike the float weights in mean and variance
    damaged = trace(network)
    network[1].momentum = 1.0
    network.train()
    with torch.no_grad():
        expected = network(INPUTS[:128])
    moments = output_moments(calibration.graph, ["0"], INPUTS[:128])
    gain, shift = reestimate(damaged, ("0",), moments, INPUTS[:128])["0"]
    with torch.no_grad():
        found = gain.view(-1, 1, 1) * damaged(INPUTS[:128]) + shift.view(-1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_silenced_channel_stays_silent():
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval())
    moments = output_moments(graph, ["0"], INPUTS)
    with torch.no_grad():
        graph.get_submodule("0").weight[0] = 0
    gain, shift = reestimate(graph, ("0",), moments, INPUTS)["0"]
    assert torch.isfinite(gain).all()
    silent = outputs_of(graph, "0", INPUTS)[:, 0]
    torch.testing.assert_close((gain[0] * silent + shift[0]).mean(), moments["0"][0][0], rtol=1e-3, atol=1e-4)


def test_biases_of_layers_that_are_estimated_again_are_not_corrected():
    scheme = parse_scheme("linear+bias+batch-norm")
    calibration = calibrate(branched(), INPUTS, scheme)
    for layer in calibration.modules:
        module = calibration.graph.get_submodule(layer.name)
        rounded = (module.weight.detach() * 3).round() / 3
        corrected = calibration.bias_under(layer.name, rounded)
        same = module.bias is not None and torch.equal(corrected, module.bias)
        assert same == (layer.name in ("stem", "block.grouped"))


def test_every_step_helps_the_digits_task_at_three_bits():
    allocation = [Allocation.make(get_task("digits").layers, 3)]
    schemes = ("linear", "linear+bias", "linear+batch-norm", "k-means", "k-means+batch-norm")
    found = {name: PTQEvaluator(digits_under(name), "float").evaluate(allocation)[0].accuracy for name in schemes}
    assert found["linear+bias"] > found["linear"] + 0.05
    assert found["linear+batch-norm"] > found["linear+bias"]
    assert found["k-means"] > found["linear"] + 0.02
    assert found["k-means+batch-norm"] >= found["linear+batch-norm"]


def test_the_same_allocation_has_the_same_numbers_whatever_came_before():
    evaluator = PTQEvaluator(digits_under("linear+equalisation+bias+batch-norm"), "float")
    allocations = [Allocation.make(evaluator.layers, bits, bits) for bits in (3, 2, 8)]
    forwards = evaluator.evaluate(allocations)
    assert evaluator.evaluate(allocations[::-1])[::-1] == forwards
    assert len(set(forwards)) == 3


@pytest.mark.parametrize("scheme", ["linear+equalisation+bias+batch-norm", "k-means+batch-norm"])
def test_training_starts_from_what_the_steps_made(scheme):
    task = digits_under(scheme)
    calibration = calibrate_task(task)
    allocation = Allocation.make(task.layers, [2, 3, 4, 5, 6, 7, 8, 3], 6)
    network = QuantizedNetwork(calibration)
    network.select(allocation)
    inputs = task.splits["search"].inputs[:32]
    expected = network(inputs)
    with torch.no_grad():
        trained = trainable_network(calibration, allocation)(inputs)
    agree = (trained.argmax(1) == expected.argmax(1)).float().mean()
    assert agree >= 0.96  # single values may fall on the other side of a rounding tie
    torch.testing.assert_close(trained.median(), expected.median(), rtol=0.05, atol=0.05)
