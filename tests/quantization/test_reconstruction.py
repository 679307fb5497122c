import pytest
import torch
from torch import nn

from quantenv.quantization.adaround import adaround
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.corrections import bias_correction
from quantenv.quantization.moments import InputMoments
from quantenv.quantization.reconstruction import find_blocks, reconstruct
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks.resnet20 import ResNet20
from tests.networks import branched

INPUTS = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def blocks_of(network, inputs=INPUTS):
    return [block.layers for block in find_blocks(calibrate(network, inputs))]


def test_blocks_are_what_lies_between_tensors_that_alone_lead_on():
    assert blocks_of(branched()) == [("stem",), ("block.grouped", "block.depthwise"), ("left", "right"), ("head",)]
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
    assert blocks_of(chain.eval()) == [("0",), ("2",), ("5",)]


def test_blocks_of_a_resnet_are_its_residual_blocks():
    pairs = [tuple(f"layer{stage}.{block}.conv{i}" for i in (1, 2)) for stage in (1, 2, 3) for block in range(3)]
    assert blocks_of(ResNet20().eval(), INPUTS[:8]) == [("conv1",), *pairs, ("linear",)]


def test_blocks_take_every_node_once_and_read_nothing_else():
    for block in find_blocks(calibrate(branched(), INPUTS)):
        known = {block.entry}
        for node in block.nodes:
            assert known.issuperset(each for each in node.all_input_nodes if each.op != "get_attr")
            known.add(node)


@pytest.mark.parametrize("scheme", ["linear+brecq", "linear+brecq+bias"])
def test_a_blocks_output_is_no_worse_than_adarounds_and_better_somewhere(scheme, monkeypatch):
    monkeypatch.setattr("quantenv.quantization.reconstruction.STEPS", 100)
    calibration = calibrate(branched(), INPUTS, parse_scheme(scheme))
    moments, gains = InputMoments(calibration), []
    for block in find_blocks(calibration):
        values = {}

        def run(codes, block=block, values=values):
            """The block's output in the network, with the weights of its layers only rounded."""
            kept = {}
            for name, each in codes.items():
                module = calibration.graph.get_submodule(name)
                weight = each * calibration.linear_grids[name][2].scale
                kept[name] = module.weight.data, None if module.bias is None else module.bias.data
                if "bias" in scheme:
                    mean = calibration.mean_inputs[name]
                    module.bias.data = module.bias.data + bias_correction(module, weight, mean)
                module.weight.data = weight
            with torch.no_grad():
                interpreter = torch.fx.Interpreter(calibration.graph, garbage_collect_values=False)
                interpreter.run(INPUTS)
            for name, (weight, bias) in kept.items():
                module = calibration.graph.get_submodule(name)
                module.weight.data = weight
                if bias is not None:
                    module.bias.data = bias
            return interpreter.env[block.nodes[-1]]

        wanted = run({})
        rounded = reconstruct(calibration, block, 2, moments)
        start = {
            name: adaround(
                calibration.graph.get_submodule(name).weight.detach(),
                calibration.linear_grids[name][2],
                moments.of(name),
            )
            for name in block.layers
        }
        after, before = (float((run(codes) - wanted).square().mean()) for codes in (rounded, start))
        assert after <= before * (1 + 1e-5)
        gains.append(after < before)
        again = reconstruct(calibration, block, 2, moments)
        assert all(torch.equal(rounded[name], again[name]) for name in block.layers)
    assert any(gains)
