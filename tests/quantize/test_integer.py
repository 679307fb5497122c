import pytest
import torch
from quantenv.quantize.coded import CodedSum
from torch import nn

from experiments.bench_agreement import agreement
from experiments.bench_tasks import trained_resnet20
from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.quantize import QuantizedNetwork, calibrate, calibrate_task
from quantenv.quantize.integer import IntegerNetwork, integer_obstacle
from quantenv.tasks import get_task
from quantenv.tasks.resnet20 import DATA_VARIABLE
from quantenv.tasks.vision import torchvision
from tests.networks import branched

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_sums_that_are_stored_are_computed_on_codes():
    modules = IntegerNetwork(calibrate(branched(), INPUTS)).module.modules()
    assert any(isinstance(module, CodedSum) for module in modules)


def test_a_site_right_behind_another_gets_values_not_codes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    calibration = calibrate(network, INPUTS)  # the ReLU is its site's lower end, and nothing else
    outputs = []
    for backend in (QuantizedNetwork, IntegerNetwork):
        quantized = backend(calibration)
        quantized.select(Allocation.make(calibration.layers, 8, 8))
        outputs.append(quantized(INPUTS))
    torch.testing.assert_close(*outputs, rtol=0, atol=0.05 * float(outputs[0].abs().max()))


@pytest.mark.parametrize("activations", ["8", "same"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_predictions_agree_with_the_float_backend_on_digits(bits, activations):
    task = get_task("digits")
    floats, integers = (backend(calibrate_task(task)) for backend in (QuantizedNetwork, IntegerNetwork))
    allocation = Allocation.make(task.layers, bits, 8 if activations == "8" else bits)
    inputs = torch.cat([task.splits["search"].inputs, task.splits["test"].inputs])
    floats.select(allocation)
    integers.select(allocation)
    agreement = (floats(inputs).argmax(1) == integers(inputs).argmax(1)).float().mean()
    assert agreement >= 0.99


def test_predictions_agree_with_the_float_backend_on_a_trained_resnet20(monkeypatch):
    # On CIFAR-10 it takes data that do not ship: `make bench` does that.
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    found = agreement(trained_resnet20(200))
    for by_bits in found.values():
        assert [int(bits) for bits in by_bits] == [2, 3, 4, 5, 6, 7, 8]
        assert all(row["agreement"] >= 0.99 for row in by_bits.values())
        assert by_bits["8"]["integer_accuracy"] > 0.8  # it has learnt, so that agreement means something


@pytest.mark.parametrize(
    ("weights", "activations"),
    [(8, 8), (4, 4), (1, 1), ([2, 3, 4, 5, 6, 1], [7, 6, 5, 4, 3, 2]), (8, [8, 2, 8, 4, 6, 8])],
)
def test_every_structure_computes_what_float_computes(weights, activations):
    calibration = calibrate(branched(), INPUTS)
    allocation = Allocation.make(calibration.layers, weights, activations)
    floats, integers = QuantizedNetwork(calibration), IntegerNetwork(calibration)
    floats.select(allocation)
    integers.select(allocation)
    expected = floats(INPUTS)
    error = (integers(INPUTS) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.median() < 1e-5  # most samples meet no rounding tie
    assert error.mean() < 0.05


def test_a_torchvision_network_with_other_activations_runs():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision().models.mobilenet_v2(weights=None, num_classes=10).eval()
    inputs = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    integers = IntegerNetwork(calibrate(network, inputs))
    with torch.no_grad():
        expected = network(inputs)
    assert (integers(inputs) - expected).norm() < 0.15 * expected.norm()


def test_every_convolution_runs_on_codes():
    calibration = calibrate(branched(), INPUTS)
    network = IntegerNetwork(calibration)
    seen = {}
    for name, module in network.module.named_modules():
        if hasattr(module, "layer"):
            module.register_forward_hook(
                lambda _, args, out, name=name: seen.__setitem__(name, (args[0].dtype, out.dtype))
            )
    network(INPUTS[:2])
    assert len(seen) == len(calibration.layers)
    assert {dtypes[0] for dtypes in seen.values()} == {torch.uint8}
    assert [name for name, dtypes in seen.items() if dtypes[1] != torch.uint8] == ["head"]


def test_without_the_kernels_the_backend_is_refused(monkeypatch):
    monkeypatch.setattr("quantenv.quantize.integer.integer_obstacle", lambda: "this CPU has no VNNI instructions")
    with pytest.raises(QuantenvError, match=r"no VNNI.*backend 'float'"):
        IntegerNetwork(calibrate(branched(), INPUTS))


def test_missing_cpu_flags_are_an_obstacle(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert "VNNI" in integer_obstacle.__wrapped__()
