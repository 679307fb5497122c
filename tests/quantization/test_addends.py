import itertools

import pytest
import torch
from torch import nn

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.integer_operators import IntegerSum
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from tests.networks import branched

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two residual adds, one behind the other, and a shortcut that moves values."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.first(x) + x)
        x = torch.relu(self.second(x)[:, :, ::2, ::2] + x[:, :, ::2, ::2])
        return self.head(x.mean((2, 3)))


def residual():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual().eval()


@pytest.mark.parametrize("make", [branched, residual])
def test_multipliers_of_sums_are_the_ratios_of_scales(make):
    network = IntegerNetwork(calibrate(make(), INPUTS))
    sums = [module for module in network.module.modules() if isinstance(module, IntegerSum)]
    assert len(sums) == 2
    for each in sums:
        for grid, factor in zip(each._grids, each._factors, strict=True):
            assert factor == pytest.approx(float(grid.scale) / float(each._target.grid.scale), rel=2**-22)


@pytest.mark.parametrize("make", [branched, residual])
def test_scales_move_by_parts_in_thousands_at_every_bit_width(make, monkeypatch):
    moved = calibrate(make(), INPUTS).site_grids
    monkeypatch.setattr("quantenv.quantization.calibrating.fitted", lambda graph, sites, grids: grids)
    before = calibrate(make(), INPUTS).site_grids
    ratios = [
        float(moved[name][bits].scale / grid.scale) for name, grids in before.items() for bits, grid in grids.items()
    ]
    assert all(ratio == pytest.approx(1, abs=2**-12) for ratio in ratios)
    assert any(ratio != 1 for ratio in ratios)
    for name, grids in before.items():
        alike = float(moved[name][8].scale / grids[8].scale)
        assert all(
            float(moved[name][bits].scale / grid.scale) == pytest.approx(alike, rel=1e-6)
            for bits, grid in grids.items()
        )


@pytest.mark.parametrize("make", [branched, residual])
def test_simulations_of_sums_hardly_ever_round_otherwise_than_integers(make):
    calibration = calibrate(make(), INPUTS)
    for bits in itertools.product((8, 2), (8,)):
        allocation = Allocation.make(calibration.layers, *bits)
        simulated, integers = QuantizedNetwork(calibration), IntegerNetwork(calibration)
        simulated.select(allocation)
        integers.select(allocation)
        expected = integers(INPUTS)
        error = (simulated(INPUTS) - expected).norm(dim=1) / expected.norm(dim=1)
        assert (error < 1e-5).float().mean() > 0.9
