"""What every trained quantizer must do, run over all of them: roles, names and bit-widths."""

import copy
import io
from itertools import pairwise

import pytest
import torch

from quantenv.quantization.kmeans import codebooks
from quantenv.quantization.ranges import activation_grids, weight_grids
from quantenv.training.qat.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 8, 3, 3, generator=GENERATOR) * torch.tensor([0.1, 0.5, 1, 1, 2, 3]).view(-1, 1, 1, 1)
SIGNED = torch.randn(4, 8, 6, 6, generator=GENERATOR) + 0.3
DATA = {"weights": WEIGHT, "signed activations": SIGNED, "activations": SIGNED.relu()}
STARTS = {
    "weights": weight_grids(WEIGHT),
    "signed activations": activation_grids(SIGNED),
    "activations": activation_grids(SIGNED.relu()),
}
CODEBOOKS = codebooks(WEIGHT)
KINDS = [
    *(("weights", name) for name in WEIGHT_QUANTIZERS),
    *((role, name) for role in ("activations", "signed activations") for name in ACTIVATION_QUANTIZERS),
]
BITS = (1, 2, 3, 4, 8)


def make(role, name, bits):
    """Returns a quantizer and what it is to round."""
    registry = WEIGHT_QUANTIZERS if role == "weights" else ACTIVATION_QUANTIZERS
    start = CODEBOOKS[bits] if name == "k-means" else STARTS[role][bits]
    quantizer = registry[name](start, 72 if role == "weights" else 8 * 6 * 6)
    return quantizer, quantizer.adopt(DATA[role]) if role == "weights" else DATA[role].clone()


@pytest.fixture(params=KINDS, ids=lambda kind: " ".join(kind))
def kind(request):
    return request.param


@pytest.mark.parametrize("bits", BITS)
def test_few_values_which_it_lists_in_ascending_order(kind, bits):
    quantizer, x = make(*kind, bits)
    rounded = quantizer(x).detach()
    levels = quantizer.levels()
    assert levels.shape[1] <= 2**bits
    assert (levels.diff() >= 0).all()
    channels = rounded.flatten(1) if len(levels) > 1 else rounded.reshape(1, -1)
    distance = (channels[:, :, None] - levels[:, None, :]).abs().amin(2)
    assert (distance <= 1e-5 * levels.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("bits", BITS)
def test_larger_values_never_round_to_smaller_ones(kind, bits):
    quantizer, x = make(*kind, bits)
    order = x.flatten(1).argsort(1)
    rounded = quantizer(x).detach().flatten(1).gather(1, order)
    assert (rounded.diff() >= -1e-6).all()


def test_more_bits_are_closer_and_eight_are_close(kind):
    errors = []
    for bits in (2, 3, 4, 5, 6, 7, 8):
        quantizer, x = make(*kind, bits)
        errors.append(float((quantizer(x) - DATA[kind[0]]).detach().norm() / DATA[kind[0]].norm()))
    assert all(finer <= coarser for coarser, finer in pairwise(errors))
    assert errors[-1] < 0.01


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_finite_and_reach_the_data_and_all_that_is_learned(kind, bits):
    quantizer, x = make(*kind, bits)
    x = (1.5 * x).requires_grad_()  # some of it lies outside the range, whose ends are learned there
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(x) * upstream).sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in quantizer.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_what_it_learns_brings_it_closer_to_a_target(kind, bits):
    quantizer, x = make(*kind, bits)
    learned = list(quantizer.parameters())
    target = 1.5 * DATA[kind[0]] if learned else DATA[kind[0]].flip(0)  # of constant quantizers, only the data learn
    optimizer = torch.optim.Adam(learned or [x.requires_grad_()], 0.02)
    losses = []
    for _ in range(40):
        loss = (quantizer(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses) < losses[0]
    assert torch.isfinite(quantizer(x)).all()


@pytest.mark.parametrize("bits", [1, 4])
def test_a_saved_copy_rounds_alike_to_the_bit(kind, bits):
    quantizer, x = make(*kind, bits)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.1)
    expected = quantizer(x)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    fresh, _ = make(*kind, bits)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), expected)
    assert torch.equal(copy.deepcopy(quantizer)(x), expected)


def test_the_input_is_left_alone_and_zero_channels_stay_zero(kind):
    quantizer, x = make(*kind, 4)
    before = x.clone()
    quantizer(x)
    assert torch.equal(x, before)
    zeros = torch.zeros_like(WEIGHT)
    start = codebooks(zeros)[4] if kind[1] == "k-means" else weight_grids(zeros)[4]
    if kind[0] != "weights":
        start = activation_grids(zeros)[4]
    dead = type(quantizer)(start, 72)
    assert torch.equal(dead(dead.adopt(zeros)), zeros)


def test_steps_are_some_of_its_parameters(kind):
    quantizer, _ = make(*kind, 4)
    assert {id(step) for step in quantizer.steps()} <= {id(parameter) for parameter in quantizer.parameters()}
    assert "bits=4" in repr(quantizer)
