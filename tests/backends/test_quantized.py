import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.graph.tracing import trace
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import quantize
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched
from tests.synthetic import synthetic_layers

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def calibration():
    return calibrate(branched(), INPUTS)


@pytest.fixture(scope="module")
def network(calibration):
    return QuantizedNetwork(calibration)


def outputs_by_hand(calibration, allocation, inputs):
    """The same network, interpreted node by node with nothing swapped, skipped or cached."""
    weight_bits = dict(zip(allocation.names, allocation.weight_bits, strict=True))
    activation_bits = dict(zip(allocation.names, allocation.activation_bits, strict=True))
    sites = {site.node: site for site in calibration.sites}

    class ByHand(fx.Interpreter):
        def run_node(self, n):
            if n.op == "call_module" and n.target in weight_bits:
                (x,), _ = self.fetch_args_kwargs_from_env(n)
                layer = calibration.graph.get_submodule(n.target)
                read = calibration.site_grids[calibration.site_of(n.target).node][activation_bits[n.target]]
                x = quantize(x, read)
                # The same memory format, so that both sums run in the same order and no rounding tie falls differently.
                weight = layer.weight.contiguous(
                    memory_format=torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format
                )
                grid = calibration.weight_grids[n.target][weight_bits[n.target]]
                weight, unit = quantize(weight, grid), grid.scale.flatten().double() * read.scale.double()
                bias = ((layer.bias / unit).round() * unit).float()  # on the grid of the accumulators
                if isinstance(layer, nn.Linear):
                    value = F.linear(x, weight, bias)
                else:
                    value = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            else:
                value = super().run_node(n)
            if n.name in sites:
                site = sites[n.name]
                bits = max([activation_bits[name] for name in site.layers] + [8] * site.shared)
                value = quantize(value, calibration.site_grids[n.name][bits])
            return value

    with torch.no_grad():
        return ByHand(calibration.graph).run(inputs)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [(8, 8), (4, 4), (1, 1), ([2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2]), ([8, 8, 8, 8, 8, 2], [8, 2, 8, 4, 6, 8])],
)
def test_outputs_equal_the_network_interpreted_by_hand(calibration, network, weights, activations):
    allocation = Allocation.make(calibration.layers, weights, activations)
    network.select(allocation)
    torch.testing.assert_close(
        network(INPUTS[:8]), outputs_by_hand(calibration, allocation, INPUTS[:8]), rtol=1e-4, atol=1e-4
    )


def test_eight_bits_are_close_to_float(calibration, network):
    network.select(Allocation.make(calibration.layers, 8, 8))
    with torch.no_grad():
        expected = branched()(INPUTS)
    error = (network(INPUTS) - expected).norm() / expected.norm()
    assert error < 0.03


def test_each_layers_bits_change_that_layers_output(calibration, network):
    base = Allocation.make(calibration.layers, 8, 8)
    network.select(base)
    reference = network(INPUTS[:8]).clone()
    for index in range(len(calibration.layers)):
        for kind in ("weight", "activation"):
            bits = [2 if i == index else 8 for i in range(len(calibration.layers))]
            network.select(Allocation.make(calibration.layers, *((bits, 8) if kind == "weight" else (8, bits))))
            assert not torch.equal(network(INPUTS[:8]), reference), (calibration.layers[index].name, kind)
    network.select(base)
    assert torch.equal(network(INPUTS[:8]), reference)


def test_changing_an_allocation_rebuilds_nothing(calibration, network):
    modules = [id(module) for module in network.module.modules()]
    first, second = (Allocation.make(calibration.layers, bits, 8) for bits in (3, 5))
    network.select(first)
    stem = network.module.get_submodule("stem")
    weight = stem.weight
    network.select(second)
    assert stem.weight is not weight
    network.select(first)
    assert stem.weight is weight
    assert [id(module) for module in network.module.modules()] == modules


def test_weights_lie_on_their_grid(calibration, network):
    network.select(Allocation.make(calibration.layers, 3, 8))
    for layer in calibration.layers:
        weight = network.module.get_submodule(layer.name).weight
        for channel in weight:
            assert len(channel.unique()) <= 2**3 - 1


def test_the_float_network_is_left_alone():
    network = branched()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    quantized = QuantizedNetwork(calibrate(network, INPUTS))
    quantized.select(Allocation.make(quantized.calibration.layers, 2, 2))
    quantized(INPUTS)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_inputs_are_not_changed(calibration, network):
    inputs = INPUTS[:4].clone()
    network.select(Allocation.make(calibration.layers, 2, 2))
    network(inputs)
    assert torch.equal(inputs, INPUTS[:4])


def test_an_allocation_for_another_network_is_refused(network):
    with pytest.raises(AllocationError, match="does not fit"):
        network.select(Allocation.make(synthetic_layers(3), 8))


def test_infinite_outputs_are_refused():
    network = branched()
    with pytest.raises(QuantenvError, match="NaN or infinity"):
        calibrate(network, torch.full((2, 3, 16, 16), math.inf))


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_torchvision_networks_quantize_unmodified(name):
    torch_model = getattr(torchvision().models, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch_model(weights=None, num_classes=10).eval()
    inputs = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, folded = network(inputs), trace(network)(inputs)
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3)
    quantized = QuantizedNetwork(calibrate(network, inputs))
    assert (quantized(inputs) - expected).norm() < 0.1 * expected.norm()
