"""Inputs whose columns share no unit lose by rounding alone, and that is said."""

import pytest
import torch
from torch import nn

from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.input_rounding import SAMPLES, input_sites, note_of_rounded_inputs
from quantenv.tasks import get_task
from tests.networks import branched


def trained(units, layers):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 3, generator=generator)
    labels = (values[:, 0] > 0).long() + 2 * (values[:, 2] > 0)
    inputs = values * torch.tensor(units)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = layers()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    return network.eval(), inputs, labels


def normalised():
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4))


def plain():
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(("layers", "units", "said"), [
    (normalised, (0.01, 1e4, 1.0), True),
    (normalised, (1.0, 2.0, 0.5), False),
    (plain, (1.0, 300.0, 1.0), True),
    (plain, (1.0, 1.0, 1.0), False),
])  # fmt: skip
def test_columns_of_unlike_units_are_said(layers, units, said):
    network, inputs, labels = trained(units, layers)
    calibration = calibrate(network, inputs)
    note = note_of_rounded_inputs(calibration, labels)
    assert ("Rounding the network's input alone to 8 bits" in (note or "")) == said
    if said:  # against the network itself
        grid = calibration.site_grids[input_sites(calibration)[0]][8]
        rounded = (inputs / grid.scale).round().clamp(grid.low, grid.high) * grid.scale
        few = labels[:SAMPLES]
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(network(x[:SAMPLES]).double(), few)) for x in (inputs, rounded)]
        assert f"from {losses[0]:.3f} to {losses[1]:.3f}" in note


def test_images_are_none_of_these():
    calibration = calibrate(branched(), torch.rand(16, 3, 16, 16))
    assert note_of_rounded_inputs(calibration, torch.zeros(16, dtype=torch.int64)) is None
    assert input_sites(calibration) == (calibration.sites[0].node,)
    assert get_task("digits").layers
