import json
import os
import subprocess
import sys

import pytest
import torch

from quantenv.core.allocation import Allocation
from quantenv.quantization.ranges import activation_grids, weight_grids
from quantenv.training.qat import fused
from quantenv.training.qat.base import LSQQuantizer
from quantenv.training.qat.compiling import compiled
from quantenv.training.qat.fused import FusedLSQQuantizer, compiler_obstacle
from quantenv.training.qat.network import trainable_network
from tests.training.qat.test_network import BITS, CALIBRATION, INPUTS

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 8, 3, 3, generator=GENERATOR)
ACTIVATION = torch.randn(4, 8, 6, 6, generator=GENERATOR) + 0.3
#: What is rounded, and its grids by bits.
SUBJECTS = {
    "weights": (WEIGHT, weight_grids(WEIGHT)),
    "activations": (ACTIVATION, activation_grids(ACTIVATION)),
    "channels last": (ACTIVATION.contiguous(memory_format=torch.channels_last), activation_grids(ACTIVATION)),
}


@pytest.fixture(params=[False, True], ids=["as written", "compiled"])
def kernels(request, monkeypatch):
    """Runs the kernels as they are written, and as torch.compile makes them."""
    if not request.param:
        monkeypatch.setattr(fused, "kernels", lambda: (fused.rounded_rows, fused.row_gradients))


def gradients(quantizer, x, weighting):
    x = x.clone().requires_grad_()
    rounded = quantizer(x)
    rounded.backward(weighting)
    return rounded.detach(), x.grad, quantizer.scale.grad


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.usefixtures("kernels")
def test_it_is_lsq_in_values_and_gradients(subject):
    x, grids = SUBJECTS[subject]
    weighting = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for bits in (1, 2, 4, 8):
        ours = gradients(FusedLSQQuantizer(grids[bits], 50), x, weighting)
        theirs = gradients(LSQQuantizer(grids[bits], 50), x, weighting)
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine.shape == reference.shape
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_other_bits_and_shapes_compile_nothing_anew():
    assert compiler_obstacle() is None
    for bits in (2, 5):  # a network's weights and activations have all kinds of sizes
        network = trainable_network(CALIBRATION, Allocation.make(CALIBRATION.layers, bits, bits), fused=True)
        network(INPUTS).square().sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        network = trainable_network(CALIBRATION, Allocation.make(CALIBRATION.layers, *BITS), fused=True)
        network(INPUTS).square().sum().backward()


@pytest.mark.parametrize("casts", [False, True], ids=["float32", "bfloat16"])
def test_the_state_of_torch_compiles_nothing_anew(casts):
    """An epoch trains, estimates batch norms again without gradients, and evaluates in inference mode."""
    test_other_bits_and_shapes_compile_nothing_anew()
    network = trainable_network(CALIBRATION, Allocation.make(CALIBRATION.layers, 3, 3), fused=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        outputs = [network(INPUTS)]
        outputs[0].float().square().sum().backward()
        with torch.compiler.set_stance("fail_on_recompile"):
            view = torch.cat([INPUTS, INPUTS])[: len(INPUTS)]
            for state in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with state():
                    outputs += [network(view), network(view.clone())]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_the_network_has_the_same_state_and_outputs():
    allocation = Allocation.make(CALIBRATION.layers, *BITS)
    ours, theirs = (trainable_network(CALIBRATION, allocation, fused=each) for each in (True, False))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(INPUTS[:8]), theirs(INPUTS[:8]), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_compiled_says_why(monkeypatch):
    def broken(*_):
        raise RuntimeError("No working C++ compiler found.\nand a long story")

    monkeypatch.setattr(fused, "kernels", lambda: (broken, broken))
    assert fused.compiler_obstacle.__wrapped__() == "torch.compile fails here (No working C++ compiler found.)"


def test_kernels_that_compute_something_else_are_an_obstacle(monkeypatch):
    def half(x, step, bounds):  # what was written for vectors twice as wide
        rounded = fused.rounded_rows(x, step, bounds)
        rounded[:, 1::2] = torch.nan
        return rounded

    monkeypatch.setattr(fused, "kernels", lambda: (half, fused.row_gradients))
    assert "compute something else" in fused.compiler_obstacle.__wrapped__()


def waves():
    """What a small kernel, compiled here, makes of some numbers."""
    return compiled(lambda x: (x * 3).sin() + x)(torch.arange(300.0)).tolist()


def test_what_was_compiled_for_other_vector_instructions_is_not_taken_over():
    ours = waves()  # its code is on disk now, if it was not
    script = "from tests.training.qat.test_fused import waves; print(waves())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == pytest.approx(ours, abs=1e-3)
