"""Batch norms that live in training: the same network before it and after they are folded."""

import copy

import pytest
import torch

from quantenv.allocation import Allocation
from quantenv.channel_groups import channels_of
from quantenv.errors import QuantenvError
from quantenv.quantize import calibrate, trainable_network
from quantenv.quantize.norms import LiveNorm
from quantenv.quantize.quantizers import LSQQuantizer
from quantenv.quantize.schemes import parse_scheme
from quantenv.quantize.trainable import TrainableLayer, fold_norms
from quantenv.quantize.trained import MidRiseQuantizer
from tests.networks import branched

INPUTS = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BITS = ([2, 3, 4, 5, 6, 1], [7, 6, 5, 4, 3, 2])
NORMALISED = ("stem", "block.grouped")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def made(scheme="linear", channels=None, bits=BITS, **options):
    calibration = calibrate(branched(), INPUTS, parse_scheme(scheme), channels)
    return trainable_network(calibration, Allocation.make(calibration.layers, *bits), **options)


def norms(network):
    return {name: module.norm for name, module in network.named_modules() if isinstance(module, TrainableLayer)}


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
    with torch.no_grad():
        torch.testing.assert_close(live.eval()(INPUTS), folded.eval()(INPUTS), **CLOSE)


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
    with torch.no_grad():
        torch.testing.assert_close(folded(INPUTS), live(INPUTS), **CLOSE)
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
    with torch.no_grad():
        torch.testing.assert_close(folded(INPUTS), live(INPUTS), **CLOSE)


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
    with torch.no_grad():
        torch.testing.assert_close(live.eval()(INPUTS), folded.eval()(INPUTS), **CLOSE)
    fold_norms(train(live.train()).eval())
    assert torch.isfinite(live(INPUTS)).all()


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
