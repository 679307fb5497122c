import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, vmap

from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.formats import quantize
from quantenv.sensitivity.curvature import Curvature
from quantenv.sensitivity.float_layers import FloatLayers
from quantenv.sensitivity.kinds import Settings
from tests.sensitivity.conftest import small_task

IMAGES = 6


@pytest.fixture(scope="module")
def task():  # measures, but keeps nothing
    return small_task()


@pytest.fixture(scope="module")
def images(task):
    search = task.splits["search"]
    return search.inputs[:IMAGES], search.labels[:IMAGES]


@pytest.fixture(scope="module")
def curvature(task):
    return Curvature(task, Settings(gradient_images=IMAGES, relative_error=0.04, probes=200))


def loss_of_weight(task, name):
    """The cross-entropy of one sample as a function of one layer's folded weights."""
    graph = calibrate_task(task).graph

    def loss(weight, sample, label):
        return F.cross_entropy(functional_call(graph, {f"{name}.weight": weight}, (sample[None],)), label[None])

    return loss, graph.get_submodule(name).weight.detach()


def loss_of_input(task, name, sample, label):
    """The cross-entropy of one sample as a function of what one layer reads, and what it reads."""
    graph = calibrate_task(task).graph
    layer = graph.get_submodule(name)
    read = []
    handle = layer.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].detach()))
    graph(sample[None])
    handle.remove()

    def loss(value):
        handle = layer.register_forward_pre_hook(lambda module, arguments: (value,))
        try:
            return F.cross_entropy(graph(sample[None]), label[None])
        finally:
            handle.remove()

    return loss, read[0]


@pytest.mark.parametrize("name", ["block.grouped", "left", "head"])
def test_weights_traces_are_those_of_the_whole_hessian(task, images, curvature, name):
    loss, weight = loss_of_weight(task, name)
    whole = hessian(lambda w: torch.stack([loss(w, x, y) for x, y in zip(*images, strict=True)]).mean())(weight)
    exact = float(whole.reshape(weight.numel(), weight.numel()).trace().detach())
    index = [layer.name for layer in task.layers].index(name)
    result = curvature.trace(index, "weights")
    assert result.mean == pytest.approx(exact, abs=4 * result.standard_error)
    assert result.standard_error < 0.2 * abs(exact)


@pytest.mark.parametrize("name", ["block.depthwise", "right", "head"])
def test_activations_traces_are_the_mean_of_the_samples(task, images, curvature, name):
    exact = 0.0
    for sample, label in zip(*images, strict=True):
        loss, value = loss_of_input(task, name, sample, label)
        exact += float(hessian(loss)(value).reshape(value.numel(), value.numel()).trace().detach()) / IMAGES
    index = [layer.name for layer in task.layers].index(name)
    result = curvature.trace(index, "activations")
    assert result.mean == pytest.approx(exact, abs=4 * result.standard_error)
    assert result.standard_error < 0.2 * abs(exact)


def test_fisher_of_weights_is_that_of_gradients_of_every_sample(task, images, curvature):
    calibration = calibrate_task(task)
    measured = np.array(curvature.fisher()["weights"])
    for index, layer in enumerate(task.layers):
        loss, weight = loss_of_weight(task, layer.name)
        gradients = vmap(grad(loss), (None, 0, 0))(weight, *images)
        for bits in range(1, 9):
            moved = quantize(weight, calibration.weight_grids[layer.name][bits]) - weight
            expected = float((gradients * moved).square().flatten(1).sum(1).mean().detach())
            assert measured[index, bits - 1] == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_fisher_of_activations_is_that_of_gradients_of_every_sample(task, images, curvature):
    calibration = calibrate_task(task)
    measured = np.array(curvature.fisher()["activations"])
    for index, layer in enumerate(task.layers):
        expected = np.zeros(8)
        for sample, label in zip(*images, strict=True):
            loss, value = loss_of_input(task, layer.name, sample, label)
            gradient = grad(loss)(value).detach()
            grids = calibration.site_grids[calibration.site_of(layer.name).node]
            expected += [float((gradient * (quantize(value, grids[b]) - value)).square().sum()) for b in range(1, 9)]
        np.testing.assert_allclose(measured[index], expected / IMAGES, rtol=1e-3, atol=1e-12)


def test_perturbations_are_mean_squares(task, images, curvature):
    calibration = calibrate_task(task)
    measured = curvature.perturbations()
    for index, layer in enumerate(task.layers):
        weight = calibration.graph.get_submodule(layer.name).weight.detach()
        values = torch.cat([loss_of_input(task, layer.name, x, y)[1] for x, y in zip(*images, strict=True)])
        grids = calibration.site_grids[calibration.site_of(layer.name).node]
        for bits in range(1, 9):
            moved = quantize(weight, calibration.weight_grids[layer.name][bits]) - weight
            assert measured["weights"][index][bits - 1] == pytest.approx(float(moved.square().mean()), rel=1e-5)
            moved = quantize(values, grids[bits]) - values
            assert measured["activations"][index][bits - 1] == pytest.approx(float(moved.square().mean()), rel=1e-5)
        assert np.all(np.diff(measured["weights"][index]) <= 0)


def test_a_shift_moves_only_what_one_layer_reads(task, images):
    # left and right read the same tensor, an output of the block
    names = [layer.name for layer in task.layers]
    layers = FloatLayers(calibrate_task(task))
    loss, (left, right) = layers.loss(*images, (), (names.index("left"), names.index("right")))
    first, second = torch.autograd.grad(loss, [left, right])
    assert left.shape == right.shape
    assert not torch.allclose(first, second)


def test_the_same_seed_gives_the_same_trace_and_touches_no_global_state(task):
    state = torch.get_rng_state()
    settings = Settings(gradient_images=IMAGES, probes=8)
    first = Curvature(task, settings).trace(2, "weights")
    assert Curvature(task, settings).trace(2, "weights") == first
    assert Curvature(task, Settings(gradient_images=IMAGES, probes=8, seed=1)).trace(2, "weights") != first
    assert torch.equal(torch.get_rng_state(), state)
