"""Integer arithmetic against whole numbers summed in NumPy, against its simulation, and on every machine."""

import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.backends.accumulators import FloatAccumulators, whole_weights
from quantenv.backends.integer import IntegerNetwork, float_operators
from quantenv.backends.integer_layer import IntegerLayer
from quantenv.backends.integer_operators import IntegerAverage, IntegerSum
from quantenv.backends.kernels import KernelAccumulators, kernel_obstacle, saturates
from quantenv.backends.prefix import PrefixRunner
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.calibrating import calibrate, restore
from quantenv.quantization.calibration import prepare
from quantenv.quantization.prepared import read_prepared, write_prepared
from quantenv.quantization.requantization import EXACT
from quantenv.quantization.schemes import parse_scheme
from quantenv.quantization.storage import CodeStorage
from quantenv.quantization.switched import SwitchedLayer
from quantenv.tasks import get_task
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched
from tests.other_machines import answers, same_everywhere

INPUTS = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SCHEMES = ("linear", "linear+bias", "linear+bias+batch-norm")


@functools.cache
def calibrated(scheme="linear", seed=0):
    return calibrate(branched(seed), INPUTS, parse_scheme(scheme))


def whole_layer(network, calibration, name, bits, numbers):
    """A layer's outputs and its bias in NumPy's whole numbers, and the scale of its weights."""
    (layer,) = (each for each in network._switched if isinstance(each, IntegerLayer) and each.name == name)
    weight = whole_weights(layer.layer, bits[0]).numpy().astype(np.int64)
    module = calibration.graph.get_submodule(name)
    if isinstance(module, nn.Linear):
        sums = numbers @ weight.T
    else:
        size = module.kernel_size
        columns = F.unfold(torch.from_numpy(numbers).double(), size, padding=module.padding, stride=module.stride)
        parts = np.split(columns.numpy().astype(np.int64), module.groups, 1)
        pairs = zip(np.split(weight, module.groups), parts, strict=True)
        sums = np.concatenate([np.einsum("ok,nkp->nop", w.reshape(len(w), -1), x) for w, x in pairs], 1)
        height = (numbers.shape[2] + 2 * module.padding[0] - size[0]) // module.stride[0] + 1
        sums = sums.reshape(*sums.shape[:2], height, -1)
    return sums, layer


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 4), (1, 2)])
def test_a_network_computes_what_numpy_does_in_whole_numbers(scheme, bits):
    calibration = calibrated(scheme)
    network = IntegerNetwork(calibration, "float32")
    network.select(Allocation.make(calibration.layers, *bits))
    grids = {site.node: calibration.site_grids[site.node] for site in calibration.sites}
    stored = {s.node: max([bits[1]] * len(s.layers) + [8] * s.shared) for s in calibration.sites}

    def layer(name, node, held, at):
        """Runs a layer on whole numbers held at some bits; returns what its site holds, or logits."""
        source = grids[calibration.site_of(name).node]
        if bits[1] < at:
            ratio = np.float32(float(source[at].scale) / float(source[bits[1]].scale))
            held = np.rint(held.astype(np.float32) * ratio).astype(np.int64)
            held = held.clip(source[bits[1]].low, source[bits[1]].high)
        sums, module = whole_layer(network, calibration, name, bits, held)
        maps = network.maps([Allocation.make(calibration.layers, *bits)])[0].get(name)
        scale = module.layer.rounding(bits[0]).scale.numpy().flatten()
        bias = module.layer.rounded(bits[0])[1]
        bias = np.zeros(len(scale)) if bias is None else bias.double().numpy()
        if maps is not None:
            scale, bias = scale * maps.gain.numpy(), maps.bias.double().numpy()
        step = source[bits[1]].scale.numpy()
        shape = (-1, 1, 1) if sums.ndim == 4 else (-1,)
        unit = scale.astype(np.float64) * np.float64(step)
        sums = sums + np.rint(bias / unit).astype(np.int64).reshape(shape)
        if node is None:
            return sums * unit
        grid = grids[node][stored[node]]
        multiplier = (scale * step / grid.scale.numpy()).reshape(shape)
        return np.rint(sums.astype(np.float32) * multiplier).astype(np.int64).clip(grid.low, grid.high)

    def added(first, second, names, node):
        one, other = (grids[name][stored[name]] for name in names)
        grid = grids[node][stored[node]]
        (module,) = (each for each in network._switched if isinstance(each, IntegerSum) and each._target.grid is grid)
        total = first * module._factors[0] + second * module._factors[1]  # exact: their bits are few
        for factor, each in zip(module._factors, (one, other), strict=True):
            assert factor == pytest.approx(float(each.scale) / float(grid.scale), rel=2**-13)
        return np.rint(total).astype(np.int64).clip(grid.low, grid.high)

    nodes = [site.node for site in calibration.sites]
    assert nodes == ["x", "relu", "relu_1", "block_depthwise", "relu_2", "left", "right", "add_1", "pool"], nodes
    first = grids["x"][stored["x"]]
    numbers = (INPUTS[:6] / first.scale).round().clamp(first.low, first.high).numpy().astype(np.int64)
    held = layer("stem", "relu", numbers, stored["x"])
    held = F.max_pool2d(torch.from_numpy(held).double(), 2).numpy().astype(np.int64)
    inner = layer("block.grouped", "relu_1", held, stored["relu"])
    inner = layer("block.depthwise", "block_depthwise", inner, stored["relu_1"])
    held = added(inner, held, ("block_depthwise", "relu"), "relu_2")
    sides = [layer(name, name, held, stored["relu_2"]) for name in ("left", "right")]
    held = added(*sides, ("left", "right"), "add_1")
    grid, pooled = grids["add_1"][stored["add_1"]], grids["pool"][stored["pool"]]
    factor = np.float32(float(grid.scale) / (float(pooled.scale) * held.shape[2] * held.shape[3]))
    held = np.rint(held.sum((2, 3)).astype(np.float32) * factor).astype(np.int64).clip(pooled.low, pooled.high)
    logits = layer("head", None, held, stored["pool"])
    found = network(INPUTS[:6])
    assert found.dtype == torch.float64
    assert (found.numpy() == logits).all()


def test_sums_and_averages_of_stored_tensors_are_integers():
    calibration = calibrated()
    kinds = [type(module) for module in IntegerNetwork(calibration).module.modules()]
    assert kinds.count(IntegerSum) == 2
    assert kinds.count(IntegerAverage) == 1
    assert kinds.count(IntegerLayer) == len(calibration.layers)
    assert float_operators(calibration) == ()


def test_what_stays_in_float_is_named():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.SiLU()).eval()
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    integers = IntegerNetwork(calibrate(network, INPUTS))
    assert not integers.exact
    assert [name.split()[0] for name in integers.float_operators] == ["GroupNorm", "SiLU"]


def test_a_site_right_behind_another_gets_values_not_codes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    calibration = calibrate(network, INPUTS)  # the ReLU is its site's lower end, and nothing else
    outputs = []
    for backend in (QuantizedNetwork, IntegerNetwork):
        quantized = backend(calibration)
        quantized.select(Allocation.make(calibration.layers, 8, 8))
        outputs.append(quantized(INPUTS).float())
    torch.testing.assert_close(*outputs, rtol=0, atol=0.05 * float(outputs[0].abs().max()))


@pytest.mark.parametrize("activations", ["8", "same"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_predictions_agree_with_the_simulation_on_digits(bits, activations):
    task = get_task("digits")
    simulated, integers = (backend(calibrate_task(task)) for backend in (QuantizedNetwork, IntegerNetwork))
    allocation = Allocation.make(task.layers, bits, 8 if activations == "8" else bits)
    inputs = torch.cat([task.splits["search"].inputs, task.splits["test"].inputs])
    simulated.select(allocation)
    integers.select(allocation)
    assert (simulated(inputs).argmax(1) == integers(inputs).argmax(1)).float().mean() >= 0.99


@pytest.mark.parametrize(
    ("weights", "activations"),
    [(8, 8), (4, 4), (1, 1), ([2, 3, 4, 5, 6, 1], [7, 6, 5, 4, 3, 2]), (8, [8, 2, 8, 4, 6, 8])],
)
def test_every_structure_computes_what_the_simulation_does(weights, activations):
    calibration = calibrated()
    allocation = Allocation.make(calibration.layers, weights, activations)
    simulated, integers = QuantizedNetwork(calibration), IntegerNetwork(calibration)
    simulated.select(allocation)
    integers.select(allocation)
    expected = simulated(INPUTS)
    error = (integers(INPUTS) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.median() < 0.01  # ties of residual adds, whose multipliers have some 15 bits
    assert error.mean() < 0.05


def test_a_torchvision_network_with_other_activations_runs():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision().models.mobilenet_v2(weights=None, num_classes=10).eval()
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    integers = IntegerNetwork(calibrate(network, inputs))
    assert integers.exact  # a ReLU6 is a clamp
    with torch.no_grad():
        expected = network(inputs)
    assert (integers(inputs) - expected).norm() < 0.15 * expected.norm()


def wide(seed, channels, groups):
    """A convolution whose sums single precision cannot hold, among small ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(3, channels, 1), nn.ReLU()),
            *(
                nn.Conv2d(channels, 2 * groups, 3, groups=groups),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(2 * groups * 36, 4),
            ),
        )
        for module in network:
            if isinstance(module, nn.Conv2d):
                module.weight.data.uniform_(0.5, 1.0)
    return network.eval()


@pytest.mark.parametrize("groups", [1, 2])
def test_sums_beyond_single_precision_are_exact_too(groups):
    inputs = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    calibration = calibrate(wide(0, 96 * groups, groups), inputs)
    network = IntegerNetwork(calibration, "float32")
    (layer,) = (each for each in network._switched if isinstance(each, IntegerLayer) and each.name == "2")
    accumulators = layer._accumulators
    assert accumulators.largest > EXACT
    numbers = torch.randint(200, 256, (3, 96 * groups, 8, 8)).float()
    bias = torch.tensor([3.0, -(2.0**30)] * groups)
    accumulators.add_bias(bias.double())
    weight = whole_weights(layer.layer, 8).double()
    expected = F.conv2d(numbers.double(), weight, bias.double(), groups=groups)  # below 2**53: exact
    assert expected.abs().max() > EXACT
    assert torch.equal(accumulators(numbers).double(), expected)
    if groups == 1:  # in parts of single precision
        assert len(accumulators._cut()) > 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.sampled_from([1, 2, 4, 7, 8]), st.sampled_from([1, 3, 8]), st.booleans())
def test_int8_kernels_sum_what_float_sums(seed, weight_bits, activation_bits, biased):
    calibration = calibrated("linear", seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in (each for each in QuantizedNetwork(calibration).module.modules() if isinstance(each, SwitchedLayer)):
        grid = layer.source.grids[activation_bits]
        channels = layer.float_weight.shape[1] * layer.geometry.groups
        shape = (4, channels) if not layer.geometry.op.dims else (4, channels, 6, 6)
        drawn = torch.randint(0, grid.high - grid.low + 1, shape, generator=generator) + grid.low
        numbers = (torch.where(drawn >= 0, 1, -1) if grid.sign else drawn).float()
        held = CodeStorage().hold(numbers.clone(), grid)
        sums = []
        for kind, given_numbers in ((FloatAccumulators, numbers), (KernelAccumulators, held)):
            accumulators = kind(layer)
            accumulators.select(weight_bits, grid)
            if biased:
                accumulators.add_bias(torch.arange(len(layer.float_weight)).double() * 1000 - 3000)
            sums.append(accumulators(given_numbers))
        assert torch.equal(*sums)


@pytest.mark.parametrize("kernels", ["int8", "int7", "", "auto "])
def test_unknown_kernels_and_those_that_cannot_run_are_refused(kernels, monkeypatch):
    monkeypatch.setattr("quantenv.backends.integer.kernel_obstacle", lambda: "this CPU has no VNNI instructions")
    message = r"no VNNI.*kernels 'float32'" if kernels == "int8" else "Unknown kernels"
    with pytest.raises(QuantenvError, match=message):
        IntegerNetwork(calibrated(), kernels)
    assert IntegerNetwork(calibrated()).kernels == "float32"


def test_kernels_without_vnni_are_not_trusted_with_large_weights(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert saturates.__wrapped__()


def test_kernels_that_saturate_with_half_of_the_weights_are_an_obstacle(monkeypatch):
    monkeypatch.setattr("quantenv.backends.kernels._exact", lambda size: False)
    assert "saturate" in kernel_obstacle.__wrapped__()


@pytest.mark.parametrize("code", [255, 254])
@pytest.mark.parametrize("weight", [127, -127, 65, -65, 64])
def test_weights_and_codes_of_the_largest_sizes_do_not_saturate(weight, code):
    for layer in (each for each in QuantizedNetwork(calibrated()).module.modules() if isinstance(each, SwitchedLayer)):
        grid = layer.source.grids[8]
        numbers = torch.full_like(layer.float_weight, weight)
        layer.numbers[8] = (numbers, numbers.double().abs().flatten(1).sum(1))
        accumulators = KernelAccumulators(layer)
        accumulators.select(8, grid)
        channels = layer.float_weight.shape[1] * layer.geometry.groups
        shape = (4, channels) if not layer.geometry.op.dims else (4, channels, 9, 9)
        held = torch.full(shape, code + grid.low)
        sums = accumulators(CodeStorage().hold(held.float(), grid))
        inside = sums if not layer.geometry.op.dims else sums[:, :, 3, 3]
        assert (inside == weight * (code + grid.low) * layer.float_weight[0].numel()).all()


def test_codebooks_have_no_integer_arithmetic():
    with pytest.raises(QuantenvError, match=r"codebooks of k-means lie on no integer grid.*backend 'float'"):
        IntegerNetwork(calibrated("k-means"))


# On every machine ------------------------------------------------------------------------------------------


def images(count):
    """Inputs that no random numbers of a machine's own make, float32 (N, 3, 16, 16)."""
    return torch.arange(count * 3 * 256).float().view(count, 3, 16, 16).remainder(17).sub(8).div(8)


def logits_in_batches(prepared, scheme):
    """Digests of logits under random allocations, with batches of 1, 5 and 12."""
    calibration = restore(branched(), images(40), read_prepared(Path(prepared)), parse_scheme(scheme))
    generator = np.random.default_rng(0)
    allocations = [
        Allocation.make(calibration.layers, generator.integers(1, 9, 6).tolist(), generator.choice([2, 8], 6).tolist())
        for _ in range(4)
    ]
    found = []
    for batch in (1, 5, 12):
        network, parts = IntegerNetwork(calibration), []
        for part in images(12).split(batch):
            outputs = PrefixRunner(network).run(part, network.settings(allocations))
            parts.append(torch.stack([each.clone() for each in outputs]))
        found.append(hashlib.sha256(torch.cat(parts, 1).numpy().tobytes()).hexdigest())
    return found


def test_every_machine_computes_the_same_bits(tmp_path):
    scheme, path = "linear+bias+batch-norm", tmp_path / "prepared.safetensors"
    write_prepared(prepare(calibrated(scheme)), path)
    found = answers(logits_in_batches, prepared=str(path), scheme=scheme)["logits_in_batches"]
    assert len(set(same_everywhere(found))) == 1
