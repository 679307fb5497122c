import torch

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from quantenv.training.qat.base import LSQQuantizer
from quantenv.training.qat.network import trainable_network
from tests.networks import branched

INPUTS = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CALIBRATION = calibrate(branched(), INPUTS)
BITS = ([2, 3, 4, 5, 6, 1], [7, 6, 5, 4, 3, 2])


def test_before_training_it_equals_the_post_training_network():
    allocation = Allocation.make(CALIBRATION.layers, *BITS)
    network = QuantizedNetwork(CALIBRATION)
    network.select(allocation)
    with torch.no_grad():
        trainable = trainable_network(CALIBRATION, allocation)(INPUTS[:8])
    torch.testing.assert_close(trainable, network(INPUTS[:8]), rtol=1e-3, atol=1e-3)


def test_every_weight_bias_and_step_receives_a_gradient():
    network = trainable_network(CALIBRATION, Allocation.make(CALIBRATION.layers, 4, 4))
    network(INPUTS).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    steps = [module for module in network.modules() if isinstance(module, LSQQuantizer)]
    layers, sites = len(CALIBRATION.layers), len(CALIBRATION.sites)
    assert len(steps) == layers + sites + 1  # one layer reads a site that an add reads at 8 bits too


def test_training_one_allocation_changes_no_other():
    allocation = Allocation.make(CALIBRATION.layers, 4, 4)
    before = QuantizedNetwork(CALIBRATION)(INPUTS[:4])
    network = trainable_network(CALIBRATION, allocation)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(INPUTS).square().sum().backward()
    optimizer.step()
    assert torch.equal(QuantizedNetwork(CALIBRATION)(INPUTS[:4]), before)
    fresh = trainable_network(CALIBRATION, allocation)
    weight = CALIBRATION.graph.get_submodule("stem").weight
    assert torch.equal(fresh.get_submodule("stem").weight, weight)
