"""Numbers of the input that stand for things are read as they are, beside what is quantized."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import quantize
from tests.networks import BACKENDS

KINDS = 300


class Table(nn.Module):
    """Four numbers and an id, looked up in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.numeric, self.category, self.head = nn.Linear(4, 8), nn.Linear(KINDS, 8), nn.Linear(16, 4)

    def forward(self, x):
        numbers, ids = self.parts(x)
        chosen = F.one_hot(ids, KINDS).float()
        return self.head(torch.relu(torch.cat([self.numeric(numbers), self.category(chosen)], 1)))

    def parts(self, x):
        if self.way == "slice":
            return x[:, :4], x[:, 4].long()
        if self.way == "type":
            return x[:, :4], x[:, 4].to(torch.int64)
        if self.way == "clamp":
            return x[:, :4], x[:, 4].clamp(0, KINDS - 1).round().long()
        if self.way == "split":
            numbers, ids = x.split([4, 1], 1)
            return numbers, ids.squeeze(1).long()
        if self.way == "scaled":
            return x[:, :4], (x[:, 4] * 2 / 2).int().long()
        if self.way == "selected":
            return x.narrow(1, 0, 4), x.select(1, 4).long()
        return x[:, :4] * 1.0, torch.clamp_max(x, KINDS - 1)[:, 4].long()


def data():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, KINDS, (200, 1), generator=generator).float()
    return torch.cat([torch.randn(200, 4, generator=generator), ids], 1)


def made(network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network().eval()


@pytest.mark.parametrize("way", ["slice", "type", "clamp", "split", "scaled", "selected", "of all"])
def test_ids_among_numbers_are_looked_up_as_they_are(way):
    network, x = made(lambda: Table(way)), data()
    calibration = calibrate(network, x)
    with torch.no_grad():
        expected = network(x)
    for kind in BACKENDS:
        quantized = kind(calibration)
        quantized.select(Allocation.make(calibration.layers, 8, 8))
        assert (quantized(x) - expected).norm() < 0.02 * expected.norm()
    numeric = calibration.site_of("numeric")  # whose grid is that of the numbers
    assert calibration.site_grids[numeric.node][8].scale < 0.05


class Both(nn.Module):
    """The id is a number, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8 + KINDS, 4)

    def forward(self, x):
        return self.second(torch.cat([torch.relu(self.first(x)), F.one_hot(x[:, 4].long(), KINDS).float()], 1))


def test_what_is_an_id_and_a_number_is_rounded_as_a_number_only():
    network, x = made(Both), data()
    calibration = calibrate(network, x)
    quantized = QuantizedNetwork(calibration)
    quantized.select(Allocation.make(calibration.layers, 8, [2, 8]))
    with torch.no_grad():
        ids = F.one_hot(x[:, 4].long(), KINDS).float()
    seen = []
    handle = quantized.module.second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    quantized(x)
    handle.remove()
    assert (seen[0][:, 8:].argmax(1) == ids.argmax(1)).all()
    grid = calibration.site_grids[calibration.site_of("first").node][2]
    with torch.no_grad():
        expected = torch.relu(F.linear(quantize(x, grid), quantized.module.first.weight, network.first.bias))
    assert (seen[0][:, :8] - expected).abs().max() < 0.02 * expected.max()


def test_images_are_stored_as_they_were():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    calibration = calibrate(network, torch.randn(8, 1, 8, 8))
    first, second = calibration.sites
    assert (first.layers, second.layers) == (("0",), ("3",))
    assert next(node for node in calibration.graph.graph.nodes if node.name == first.node).op == "placeholder"
