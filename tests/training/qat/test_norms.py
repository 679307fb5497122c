"""Batch norms that live in training: the same network before it and after they are folded."""

import copy

import pytest
import torch

from quantenv.core.allocation import Allocation
from quantenv.core.channel_groups import channels_of
from quantenv.core.errors import QuantenvError
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.schemes import parse_scheme
from quantenv.training.qat.base import LSQQuantizer
from quantenv.training.qat.network import TrainableLayer, fold_norms, trainable_network
from quantenv.training.qat.norms import LiveNorm
from quantenv.training.qat.quantizers import MidRiseQuantizer
from tests.networks import branched

INPUTS = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BITS = ([2, 3, 4, 5, 6, 1], [7, 6, 5, 4, 3, 2])
NORMALISED = ("stem", "block.grouped")


def made(scheme="linear", channels=None, bits=BITS, **options):
    calibration = calibrate(branched(), INPUTS, parse_scheme(scheme), channels)
    return trainable_network(calibration, Allocation.make(calibration.layers, *bits), **options)


def norms(network):
    return {name: module.norm for name, module in network.named_modules() if isinstance(module, TrainableLayer)}


def assert_folded(folded, live, inputs=INPUTS):
    """Each layer puts out what its convolution and norm do, but for a bias on the grid of its accumulators."""
    seen = {}
    hooks = [
        live.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
        for name in NORMALISED
    ]
    with torch.no_grad():
        live.eval()(inputs)
        for name, (x, expected) in seen.items():
            layer = folded.get_submodule(name).eval()
            found, half = layer(x), units(folded, name).view(-1, 1, 1) / 2
            assert ((found - expected).abs() <= half + 1e-3 + 1e-3 * expected.abs()).all(), name
    for hook in hooks:
        hook.remove()


def units(network, name):
    """What the accumulators of a layer with learned steps stand for, (O,), told from what it reads and its weights."""
    layer, seen = network.get_submodule(name), []
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        network.eval()(INPUTS)
        weight = layer.weight_quantizer(layer.weight).flatten(1)
        read = seen[0] if layer.requantizer is None else layer.requantizer(seen[0])
    hook.remove()
    return smallest_step(weight) * smallest_step(read.flatten()[None])


def smallest_step(rows):
    """The smallest distance between two values of a row, or the smallest value: at least what all are multiples of."""
    steps = []
    for row in rows:
        values = torch.cat([row, -row, torch.zeros(1)]).unique()
        gaps = values.diff()
        steps.append(gaps[gaps > 1e-4 * gaps.max()].min() if len(gaps) and gaps.max() > 0 else torch.tensor(0.0))
    return torch.stack(steps)


def train(network, rate=0.05):
    optimizer = torch.optim.SGD(network.parameters(), rate)
    for part in INPUTS.split(16):
        optimizer.zero_grad()
        (network(part) - 1).square().mean().backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("scheme", ["linear", "linear+batch-norm", "linear+equalisation+bias+batch-norm"])
def test_putting_them_back_changes_nothing(scheme):
    folded, live = made(scheme), made(scheme, live_norms=True)
    assert [name for name, norm in norms(live).items() if norm is not None] == list(NORMALISED)
    assert_folded(folded, live)


@pytest.mark.parametrize("weights", ["lsq", "mid-rise", "linear", "dorefa"])
def test_folding_keeps_a_trained_network_as_it_is(weights):
    live = train(made(weight_quantizer=weights, live_norms=True)).eval()
    with torch.no_grad():
        for name in NORMALISED:  # a gain that became negative turns the signs of its weights
            live.get_submodule(name).norm.weight[1] *= -1
        if isinstance(quantizer := live.get_submodule("stem").weight_quantizer, LSQQuantizer | MidRiseQuantizer):
            quantizer.scale[2] *= -1  # a learned step, whose size alone counts
    folded = copy.deepcopy(live)
    fold_norms(folded)
    assert set(norms(folded).values()) == {None}
    for name in NORMALISED:
        layer, before = folded.get_submodule(name), live.get_submodule(name)
        for channel, (rounded, old) in enumerate(
            zip(layer.weight_quantizer(layer.weight), before.weight_quantizer(before.weight), strict=True)
        ):
            assert len(rounded.unique()) <= 2**layer.weight_quantizer.bits, channel
            assert len(rounded.unique()) == len(old.unique()), channel
    assert_folded(folded, live)
    plain = made(weight_quantizer=weights)
    assert folded.state_dict().keys() == plain.state_dict().keys()


def test_channel_groups_fold_with_the_steps_of_their_own_channels():
    channels = {"stem": (torch.tensor([0, 3, 5, 6]), torch.tensor([1, 2, 4, 7]))}
    calibration = calibrate(branched(), INPUTS, channels={"stem": ((0, 3, 5, 6), (1, 2, 4, 7))})
    bits = [2, 6, *BITS[0][1:]]
    assert [channels_of(layer) for layer in calibration.layers[:2]] == [tuple(c.tolist()) for c in channels["stem"]]
    live = train(trainable_network(calibration, Allocation.make(calibration.layers, bits, 4), live_norms=True)).eval()
    folded = copy.deepcopy(live)
    fold_norms(folded)
    assert_folded(folded, live)


def test_a_batch_is_normalised_by_its_own_statistics_in_training_alone():
    live = made(live_norms=True)
    layer, seen = live.get_submodule("stem"), []
    layer.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    live(5 * INPUTS[:16])
    wanted = layer.norm.weight.detach().square(), layer.norm.bias.detach()
    torch.testing.assert_close(seen[0].var((0, 2, 3), unbiased=False), wanted[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), wanted[1], rtol=1e-2, atol=1e-3)
    live.eval()(5 * INPUTS[:16])
    assert (seen[1].var((0, 2, 3)) > 4 * wanted[0]).all()


def test_weights_have_the_scale_they_were_pretrained_at():
    network, live = branched(), made(live_norms=True)
    for name in NORMALISED:
        torch.testing.assert_close(live.get_submodule(name).weight, network.get_submodule(name).weight)


def test_a_channel_of_zeros_stays_the_constant_that_it_is():
    network = branched()
    with torch.no_grad():
        network.stem.weight[2] = 0
        network.stem_norm.weight[3] = 0
    calibration = calibrate(network, INPUTS)
    allocation = Allocation.make(calibration.layers, *BITS)
    folded, live = (trainable_network(calibration, allocation, live_norms=each) for each in (False, True))
    assert_folded(folded, live)
    trained = train(live.train()).eval()
    folded = copy.deepcopy(trained)
    fold_norms(folded)
    assert_folded(folded, trained)
    assert torch.isfinite(folded(INPUTS)).all()


def test_codebooks_are_refused():
    with pytest.raises(QuantenvError, match="'k-means' has one codebook for all channels"):
        made("k-means", live_norms=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_it_is_torch_s_own_batch_norm(dtype):
    ours, theirs = LiveNorm(4, dtype=dtype), torch.nn.BatchNorm2d(4, dtype=dtype)
    with torch.no_grad():
        for parameter, values in ((ours.weight, [0.5, -1, 2, 0]), (ours.bias, [1, 0, -1, 2])):
            parameter.copy_(torch.tensor(values))
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 5, 5, dtype=dtype, generator=generator).to(memory_format=torch.channels_last)
    upstream = torch.randn(x.shape, dtype=dtype, generator=generator)
    results = []
    for norm in (torch.compile(ours, backend="aot_eager"), theirs):
        mine = x.clone().requires_grad_()
        output = norm(mine)
        (output * upstream).sum().backward()
        module = getattr(norm, "_orig_mod", norm)
        results.append([output, mine.grad, *(p.grad for p in module.parameters()), *module.buffers()][:-1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(torch.compile(ours.eval(), backend="aot_eager")(x), ours(x))


def test_statistics_of_one_value_are_refused():
    norm = LiveNorm(3)
    with pytest.raises(QuantenvError, match="batch of one sample"):
        norm(torch.randn(1, 3, 1, 1))
    assert norm(torch.randn(2, 3, 1, 1)).shape == (2, 3, 1, 1)
    assert norm.eval()(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)
