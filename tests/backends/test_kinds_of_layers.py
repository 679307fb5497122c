"""Every kind of layer in the registry, from its description to integers and to training."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import UnsupportedLayerError
from quantenv.evaluation import make_evaluator
from quantenv.graph.layers import describe
from quantenv.graph.ops import OPS
from quantenv.hardware import compile_costs, load_device
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.schemes import parse_scheme
from quantenv.sensitivity import measure
from quantenv.tasks.activations import activations_of
from quantenv.tasks.data.datasets import task_from_datasets
from quantenv.training import FinetuneConfig, finetune
from quantenv.training.qat.network import trainable_network

KINDS = [kind for kind, op in OPS.items() if op.dims]
SCHEMES = ["linear", "linear+bias+batch-norm", "linear+equalisation+absorption+bias"]


def network_of(kind, seed=0):
    """Three layers of one kind, batch norms behind two of them, and a Linear; and a shape of inputs."""
    generator = torch.Generator().manual_seed(seed)
    op = OPS[kind]
    more = {"stride": 2} if op.transposed else {"padding": 1}
    side = {1: 12, 2: 6, 3: 4}[op.dims]
    layers = (
        kind(3, 8, 3, bias=False, **more),
        op.norm(8),
        nn.ReLU(),
        kind(8, 8, 2, groups=2, dilation=2),
        op.norm(8),
        nn.ReLU(),
        kind(8, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    network = nn.Sequential(*layers)
    with torch.no_grad():
        features = network.eval()(torch.zeros(2, 3, *[side] * op.dims)).shape[1]
    network.append(nn.Linear(features, 5))
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data = 1 + 0.1 * drawn if isinstance(module, op.norm) and name == "weight" else drawn / fan**0.5
        if isinstance(module, op.norm):
            module.running_mean = torch.randn(8, generator=generator) * 0.1
            module.running_var = torch.rand(8, generator=generator) + 0.5
    return network, torch.randn(48, 3, *[side] * op.dims, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_are_the_same_on_both_kernels_and_in_any_batch(kind, scheme):
    network, inputs = network_of(kind)
    calibration = calibrate(network, inputs, parse_scheme(scheme))
    assert [layer.name for layer in calibration.layers] == ["0", "3", "6", "9"]
    in_float, on_kernels = IntegerNetwork(calibration, "float32"), IntegerNetwork(calibration)
    assert in_float.exact
    for bits in ((8, 8), (4, 6), (2, 3), (1, 1)):
        allocation = Allocation.make(calibration.layers, *bits)
        for each in (in_float, on_kernels):
            each.select(allocation)
        outputs = in_float(inputs)
        assert torch.equal(outputs, on_kernels(inputs))
        assert torch.equal(outputs[5:6], in_float(inputs[5:6]))
    in_float.select(Allocation.make(calibration.layers, 8, 8))
    exact = network(inputs)
    assert (in_float(inputs) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_the_simulated_network_and_reaches_every_weight(kind):
    network, inputs = network_of(kind)
    calibration = calibrate(network, inputs)
    allocation = Allocation.make(calibration.layers, 4, 6)
    simulated = QuantizedNetwork(calibration)
    simulated.select(allocation)
    trainable = trainable_network(calibration, allocation)
    with torch.no_grad():
        torch.testing.assert_close(trainable.eval()(inputs), simulated(inputs), rtol=1e-3, atol=1e-3)
    trainable.train()(inputs).square().sum().backward()
    for name, parameter in trainable.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("steps", ["adaround", "brecq"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_learned_rounding_is_no_worse_than_nearest(kind, steps, monkeypatch):
    monkeypatch.setattr("quantenv.quantization.reconstruction.STEPS", 100)
    network, inputs = network_of(kind)
    errors = []
    for scheme in ("linear", f"linear+{steps}"):
        quantized = QuantizedNetwork(calibrate(network, inputs, parse_scheme(scheme)))
        quantized.select(Allocation.make(quantized.calibration.layers, 3, 8))
        errors.append(float((quantized(inputs) - network(inputs)).detach().norm()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d])
def test_a_task_of_them_has_costs_sensitivities_evaluations_and_is_trained(kind):
    network, _ = network_of(kind)
    generator = torch.Generator().manual_seed(1)
    _, few = network_of(kind)
    inputs = torch.randn(240, *few.shape[1:], generator=generator)
    with torch.no_grad():
        network[-1].bias -= network(inputs).mean(0)  # every class occurs
        labels = network(inputs).argmax(1)
    train, held_out = TensorDataset(inputs[:140], labels[:140]), TensorDataset(inputs[140:], labels[140:])
    task = task_from_datasets(network, train, held_out, name="kinds")
    costs = compile_costs(task.layers, activations_of(task), load_device("generic"))
    eight = Allocation.make(task.layers, 8, 8)
    kinds = describe(network, inputs[:1])
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    assert sum(layer.params for layer in kinds) == weights
    assert costs["size"].cost(eight.weight_bits, eight.activation_bits) == weights
    assert costs["bops"].cost(eight.weight_bits, eight.activation_bits) == sum(layer.macs for layer in kinds) * 64
    evaluator = make_evaluator("ptq", task, "off")
    float_like, rough = evaluator.evaluate([eight, Allocation.make(task.layers, 2, 2)])
    assert float_like.accuracy > 0.9 > rough.accuracy
    harm = measure(task, "kl")
    assert np.isfinite(harm.weights[:, 1:]).all()
    result = finetune(task, Allocation.make(task.layers, 3, 4), FinetuneConfig(epochs=1, batch_size=32))
    assert result.search.samples == 50


def test_a_layer_that_runs_twice_is_refused_when_it_is_described():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.layer(self.layer(x)).flatten(1)

    with pytest.raises(UnsupportedLayerError, match="Layer 'layer' runs 2 times"):
        describe(Twice(), torch.zeros(1, 3, 8))


def test_convolutions_that_functions_call_with_weights_of_their_own_are_layers():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.first = nn.Parameter(torch.randn(4, 3, 3, generator=generator))
            self.second = nn.Parameter(torch.randn(4, 2, 3, generator=generator))
            self.bias = nn.Parameter(torch.randn(4, generator=generator))

        def forward(self, x):
            x = nn.functional.conv1d(x, self.first / 2, self.bias, padding=1).relu()
            return nn.functional.conv_transpose1d(x, self.second, stride=2, groups=2, output_padding=1).flatten(1)

    network, inputs = Functional().eval(), torch.randn(16, 3, 8, generator=torch.Generator().manual_seed(1))
    calibration = calibrate(network, inputs)
    assert [(layer.kind, layer.params) for layer in calibration.layers] == [("conv", 36), ("transposed", 24)]
    torch.testing.assert_close(calibration.graph(inputs), network(inputs))
