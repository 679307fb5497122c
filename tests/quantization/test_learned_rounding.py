import dataclasses
import logging
import pickle
import threading

import pytest
import torch

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import evaluate_logits
from quantenv.quantization.adaround import nearest_codes
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import quantize, within_cells
from quantenv.quantization.learned_rounding import LearnedRounding
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import get_task
from quantenv.training.qat.network import TrainableLayer, trainable_network
from tests.networks import BACKENDS, branched

INPUTS = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CHANNELS = {"stem": [[7, 0, 3], [1, 2], [4, 5, 6]], "block.depthwise": [[0, 2, 4, 6], [1, 3, 5, 7]]}
STEPS = ["adaround", "brecq"]


@pytest.fixture(autouse=True)
def short_learning(monkeypatch):
    for module in ("adaround", "reconstruction"):
        monkeypatch.setattr(f"quantenv.quantization.{module}.STEPS", 20)


def calibrated(step="adaround", network=None, inputs=INPUTS, rest="", **options):
    return calibrate(network or branched(), inputs, parse_scheme(f"linear+{step}{rest}"), **options)


def weights_of(calibration, bits):
    return {layer.name: calibration.rounded(layer.name, bits) for layer in calibration.modules}


@pytest.mark.parametrize("step", STEPS)
def test_weights_lie_on_the_grid_and_are_no_longer_the_nearest(step):
    calibration = calibrated(step)
    for bits in (1, 2, 5):
        moved = 0
        for name, rounded in weights_of(calibration, bits).items():
            grid = calibration.linear_grids[name][bits]
            assert torch.equal(quantize(rounded, grid), rounded)
            moved += int((rounded != quantize(calibration.graph.get_submodule(name).weight, grid)).sum())
        assert moved
    for name, rounded in weights_of(calibration, 8).items():
        nearest = quantize(calibration.graph.get_submodule(name).weight, calibration.linear_grids[name][8])
        assert torch.equal(rounded, nearest)


@pytest.mark.parametrize("step", STEPS)
def test_what_is_learned_is_the_same_in_any_order_and_number_of_threads(step):
    first = calibrated(step)
    wanted = weights_of(first, 3)
    second, threads = calibrated(step), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        weights_of(second, 2)
        found = {name: second.rounded(name, 3) for name in reversed(wanted)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(("step", "parts"), [("adaround", 6), ("brecq", 4)])
def test_it_is_learned_once_for_each_part_and_bits(step, parts, monkeypatch):
    learned, original = [], LearnedRounding._learned
    monkeypatch.setattr(LearnedRounding, "_learned", lambda *asked: learned.append(asked[1:]) or original(*asked))
    calibration = calibrated(step)
    wanted = weights_of(calibration, 3)
    found = weights_of(calibration, 3)
    assert sorted(learned) == [(part, 3) for part in range(parts)]
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_who_waits_is_told(caplog):
    calibration = calibrated()
    with caplog.at_level(logging.INFO):
        weights_of(calibration, 3)
        weights_of(calibration, 3)
    assert caplog.text.count("Learning how to round weights to 3 bits (adaround, 6 layers, once)") == 1


def test_threads_do_not_learn_the_same_twice(monkeypatch):
    learned, original = [], LearnedRounding._learned
    monkeypatch.setattr(LearnedRounding, "_learned", lambda *asked: learned.append(asked[1:]) or original(*asked))
    calibration, found = calibrated(), []
    threads = [threading.Thread(target=lambda: found.append(calibration.rounded("stem", 2))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, found[0]) for each in found)
    assert learned == [(0, 2)]


def test_a_calibration_can_be_sent_to_other_processes():
    calibration = calibrated()
    wanted = calibration.rounded("stem", 3)
    again = pickle.loads(pickle.dumps(calibration))
    assert torch.equal(again.rounded("stem", 3), wanted)
    assert torch.equal(again.rounded("left", 2), calibration.rounded("left", 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_channel_groups_take_their_channels_of_the_layers_rounding(backend):
    whole, grouped = calibrated(), calibrated(channels=CHANNELS)
    weight_bits = [8, 2, 5, 4, 1, 6, 7, 2, 3]
    network = backend(grouped)
    network.select(Allocation.make(grouped.layers, weight_bits, 8))
    layer = next(
        layer for layer in QuantizedNetwork(grouped).module.modules() if getattr(layer, "indices", None) == (0, 1, 2)
    )
    rounded, _ = layer.rounded((8, 2, 5))
    for channels, bits in zip(CHANNELS["stem"], (8, 2, 5), strict=True):
        assert torch.equal(rounded[channels], whole.rounded("stem", bits)[channels])
    equal = Allocation.make(grouped.layers, 3, 8)
    network.select(equal)
    found = network(INPUTS)
    other = backend(whole)
    other.select(Allocation.make(whole.layers, 3, 8))
    assert torch.equal(found, other(INPUTS))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_training_starts_from_weights_that_nearest_rounding_rounds_as_learned(bits):
    for channels in ({}, CHANNELS):
        calibration = calibrated(channels=channels)
        allocation = Allocation.make(calibration.layers, bits, 8)
        network, trained = QuantizedNetwork(calibration), trainable_network(calibration, allocation).eval()
        network.select(allocation)
        for name, layer in trained.named_modules():
            if isinstance(layer, TrainableLayer):
                with torch.no_grad():
                    torch.testing.assert_close(layer.weight_quantizer(layer.weight), calibration.rounded(name, bits))
        with torch.no_grad():
            torch.testing.assert_close(trained(INPUTS), network(INPUTS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 3])
def test_values_are_moved_no_further_than_into_their_cell(bits):
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    calibration = calibrated()
    grid = dataclasses.replace(calibration.linear_grids["left"][bits], scale=torch.full((4, 1), 0.5))
    codes = nearest_codes(x, grid)
    wanted = codes.clone()
    wanted[0] = -codes[0] if grid.sign else (codes[0] + 1).clamp(max=grid.high)
    moved = within_cells(x, wanted * grid.scale, grid)
    assert torch.equal(quantize(moved, grid), wanted * grid.scale)
    assert torch.equal(moved[1:], x[1:])


@pytest.mark.parametrize("step", STEPS)
def test_it_raises_accuracy_on_digits_at_few_bits(step, monkeypatch):
    monkeypatch.setattr("quantenv.quantization.adaround.STEPS", 100)
    monkeypatch.setattr("quantenv.quantization.reconstruction.STEPS", 40)
    task, found = get_task("digits"), {}
    for scheme in (f"linear+{step}+bias", "linear+bias"):  # not prepared: that learns all bits
        calibration = calibrate(task.network, task.splits["calibration"].inputs, parse_scheme(scheme))
        network = QuantizedNetwork(calibration)
        for bits in (3, 2):
            network.select(Allocation.make(task.layers, bits, 8))
            found[scheme, bits] = evaluate_logits(network, task.splits["search"]).correct
    assert found[f"linear+{step}+bias", 3] >= found["linear+bias", 3]
    assert found[f"linear+{step}+bias", 2] > found["linear+bias", 2] + 20
