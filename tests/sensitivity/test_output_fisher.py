"""A linear classifier in closed form; a network sample by sample, by autograd in each output."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.evaluation.channel_groups import group_channels
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.formats import quantize
from quantenv.sensitivity import Settings, measure
from quantenv.sensitivity.deviations import Deviation
from quantenv.sensitivity.output_fisher import OutputFisher
from tests.sensitivity.conftest import small_task

IMAGES = 12


def linear_task(scheme="linear"):
    torch.manual_seed(0)
    return dataclasses.replace(small_task(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))), scheme=scheme)


@pytest.mark.parametrize("part", ["weights", "activations"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_of_a_linear_classifier_it_is_the_closed_form(part, bits):
    # Logits z = W x + b: the gradient of the cross-entropy in z is softmax(z) less the label's unit vector.
    task = linear_task()
    calibration, split = calibrate_task(task), task.splits["search"]
    x, labels = split.inputs[:IMAGES].flatten(1).double(), split.labels[:IMAGES]
    layer = calibration.graph.get_submodule("1")
    weight, bias = layer.weight.detach(), layer.bias.detach().double()
    gradient = (x @ weight.double().T + bias).softmax(1) - F.one_hot(labels, 5)
    if part == "weights":
        moved = x @ (quantize(weight, calibration.weight_grids["1"][bits]) - weight).double().T
    else:
        grid = calibration.site_grids[calibration.site_of("1").node][bits]
        moved = (quantize(x.float(), grid).double() - x) @ weight.double().T
    expected = float((gradient.square() * moved.square()).sum(1).mean())
    assert OutputFisher(task, IMAGES).measure([Deviation((0,), part, bits)]) == [pytest.approx(expected, rel=1e-3)]


def test_of_a_network_it_is_that_of_every_sample_s_gradients(task):
    calibration, split = calibrate_task(task), task.splits["search"]
    wanted = [Deviation((index,), "weights", 3) for index in range(len(task.layers))]
    expected = np.zeros(len(wanted))
    for sample, label in zip(split.inputs[:IMAGES].split(1), split.labels[:IMAGES].split(1), strict=True):
        for index, layer in enumerate(task.layers):
            module, seen = calibration.graph.get_submodule(layer.name), {}

            def hook(module, arguments, output, seen=seen):
                seen["x"], seen["y"] = arguments[0].detach().clone(), output.detach().clone().requires_grad_()
                return seen["y"] * 1.0

            handle = module.register_forward_hook(hook)
            loss = F.cross_entropy(calibration.graph(sample), label)
            handle.remove()
            (gradient,) = torch.autograd.grad(loss, seen["y"])
            weight = module.weight.detach().clone()
            with torch.no_grad():
                rounded = quantize(module.weight, calibration.weight_grids[layer.name][3])
                y = torch.func.functional_call(module, {"weight": weight}, (seen["x"],))
                moved = torch.func.functional_call(module, {"weight": rounded}, (seen["x"],)) - y
            expected[index] += float((gradient * moved).square().sum()) / IMAGES
    np.testing.assert_allclose(OutputFisher(task, IMAGES).measure(wanted), expected, rtol=2e-3)


def test_what_the_scheme_does_after_rounding_is_in_it():
    # Bias correction takes the mean of each output's error away on the calibration split, and so most of a big one.
    plain, corrected = linear_task(), linear_task("linear+bias")
    shifted = {}
    for task in (plain, corrected):
        inputs = task.splits["search"].inputs + 3
        splits = {**task.splits, "search": dataclasses.replace(task.splits["search"], inputs=inputs)}
        splits["calibration"] = dataclasses.replace(
            task.splits["calibration"], inputs=task.splits["calibration"].inputs + 3
        )
        (shifted[task.scheme],) = OutputFisher(dataclasses.replace(task, splits=splits), IMAGES).measure(
            [Deviation((0,), "weights", 2)]
        )
    assert shifted["linear+bias"] < shifted["linear"] / 2


def test_re_estimated_statistics_take_the_change_of_scale_away(task):
    wanted = [Deviation((index,), "weights", 2) for index in range(2)]
    plain = OutputFisher(task, IMAGES).measure(wanted)
    normed = OutputFisher(dataclasses.replace(task, scheme="linear+batch-norm"), IMAGES).measure(wanted)
    assert all(after < before for before, after in zip(plain, normed, strict=True))


def test_of_channel_groups_it_adds_up(task):
    grouped = group_channels(task, 2)
    settings = Settings(gradient_images=IMAGES)
    whole, parts = (measure(each, "fisher-output", settings) for each in (task, grouped))
    groups = {}
    for index, layer in enumerate(grouped.layers):
        groups.setdefault(layer.name.partition("#")[0], []).append(index)
    for index, layer in enumerate(task.layers):
        np.testing.assert_allclose(parts.weights[groups[layer.name]].sum(axis=0), whole.weights[index], rtol=1e-5)
        np.testing.assert_allclose(
            parts.activations[groups[layer.name]].sum(axis=0), whole.activations[index], rtol=1e-5
        )


def test_statistics_that_are_measured_on_first_use_are_not_watched():
    task = dataclasses.replace(small_task(seed=3), scheme="linear+bias+batch-norm")
    first = measure(task, "fisher-output", Settings(images=8, gradient_images=8))
    assert np.isfinite(first.weights).all()
