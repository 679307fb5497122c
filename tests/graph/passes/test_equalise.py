import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.passes.equalise import absorb, equalise
from quantenv.graph.tracing import trace
from quantenv.quantization import checked_passes as passes
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.corrections import output_moments
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import get_task
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched

GENERATOR = torch.Generator().manual_seed(0)


def chain(*layers):
    """A sequential network whose channels have very different ranges."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(*(layer() for layer in layers)).eval()
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight *= (10 ** torch.linspace(-1, 1, len(layer.weight))).view(
                    -1, *[1] * (layer.weight.dim() - 1)
                )
    return network


def equalised(graph, x):
    return [pair.names for pair in equalise(graph, x[:1])]


def absorbed(graph, moments, x):
    return [pair.names for pair, _ in absorb(graph, moments, x[:1])]


def ranges(graph, first, second, groups=1):
    out = graph.get_submodule(first).weight.abs().flatten(1).amax(1)
    weight = graph.get_submodule(second).weight
    into = weight.view(groups, len(weight) // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()
    return out, into


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_ranges_agree_and_outputs_stay(groups):
    network = chain(
        lambda: nn.Conv2d(3, 8, 3), nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.Conv2d(8, 8, 3, groups=groups)
    )
    graph = trace(network)
    x = torch.randn(2, 3, 12, 12, generator=GENERATOR)
    assert equalised(graph, x) == [("0", "3")]
    out, into = ranges(graph, "0", "3", groups)
    torch.testing.assert_close(out, into, rtol=1e-3, atol=0)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)


def test_a_pair_has_the_factors_of_equation_11():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[4.0], [1.0]]))
        network[0].bias.copy_(torch.tensor([8.0, 2.0]))
        network[2].weight.copy_(torch.tensor([[1.0, 9.0]]))
    graph = trace(network)
    equalise(graph, torch.ones(1, 1))
    # s = sqrt(r1 r2) / r2 = (2, 1/3)
    torch.testing.assert_close(graph.get_submodule("0").weight, torch.tensor([[2.0], [3.0]]))
    torch.testing.assert_close(graph.get_submodule("0").bias, torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(graph.get_submodule("2").weight, torch.tensor([[2.0, 3.0]]))


def test_a_chain_of_three_is_swept_until_it_rests():
    network = chain(*(lambda: nn.Linear(6, 6), nn.ReLU) * 2, lambda: nn.Linear(6, 4))
    graph = trace(network)
    x = torch.randn(5, 6, generator=GENERATOR)
    assert equalised(graph, x) == [("0", "2"), ("2", "4")]
    for first, second in (("0", "2"), ("2", "4")):
        torch.testing.assert_close(*ranges(graph, first, second), rtol=1e-2, atol=0)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("between", [nn.ReLU6, nn.SiLU, nn.Sigmoid])
def test_functions_that_are_not_homogeneous_are_not_crossed(between):
    network = chain(lambda: nn.Linear(3, 4), between, lambda: nn.Linear(4, 2))
    graph = trace(network)
    assert equalised(graph, torch.ones(1, 3)) == []
    assert torch.equal(graph.get_submodule("0").weight, network[0].weight)


def test_all_positions_of_flattened_maps_have_their_channels_factor():
    network = chain(lambda: nn.Conv2d(1, 2, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(8, 2))
    graph, x = trace(network), torch.randn(3, 1, 4, 4, generator=GENERATOR)
    assert equalised(graph, x) == [("0", "3")]
    out = graph.get_submodule("0").weight.abs().flatten(1).amax(1)
    torch.testing.assert_close(out, graph.get_submodule("3").weight.view(2, 2, 4).abs().amax((0, 2)), rtol=1e-3, atol=0)
    factors = graph.get_submodule("3").weight / network[3].weight
    torch.testing.assert_close(factors, factors[:1, [0, 4]].repeat_interleave(4, 1).expand(2, -1))
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)


class Between(nn.Module):
    """Two layers and a function between them."""

    def __init__(self, first, between, second):
        super().__init__()
        self.first, self.second, self.between = first, second, between

    def forward(self, x):
        return self.second(self.between(self.first(x).relu()))


IMAGES, TOKENS = (3, 6, 6), (5, 6)
BETWEEN = {
    # name: what is between, shape of its input, and input features of a Linear behind it or channels of a Conv2d
    "nothing, columns": (lambda x: x, IMAGES, nn.Linear, 4),
    "flatten(1)": (lambda x: x.flatten(1), IMAGES, nn.Linear, 64),
    "flatten(2)": (lambda x: x.flatten(2), IMAGES, nn.Linear, 16),
    "flatten(-2)": (lambda x: torch.flatten(x, -2), IMAGES, nn.Linear, 16),
    "flatten(1, 2)": (lambda x: torch.flatten(x, start_dim=1, end_dim=2), IMAGES, nn.Linear, 4),
    "flatten(0, 1)": (lambda x: x.flatten(0, 1).view(-1, 4, 4, 4), IMAGES, nn.Conv2d, 4),
    "reshape": (lambda x: x.reshape(len(x), 16, 4).flatten(1), IMAGES, nn.Linear, 64),
    "permute": (lambda x: x.permute(0, 2, 3, 1).flatten(1), IMAGES, nn.Linear, 64),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), IMAGES, nn.Linear, 4),
    "transpose": (lambda x: x.transpose(1, 3), IMAGES, nn.Conv2d, 4),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), IMAGES, nn.Conv2d, 1),
    "global pool": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), IMAGES, nn.Linear, 4),
    "pool of 2x2": (lambda x: F.adaptive_max_pool2d(x, 2).flatten(1), IMAGES, nn.Linear, 16),
    "padded pool": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGES, nn.Conv2d, 4),
    "padded maximum": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGES, nn.Conv2d, 4),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGES, nn.Conv2d, 4),
    "mean": (lambda x: x.mean((2, 3)), IMAGES, nn.Linear, 4),
    "tokens": (lambda x: x, TOKENS, nn.Linear, 4),
    "tokens, flattened": (lambda x: x.flatten(1), TOKENS, nn.Linear, 20),
    "tokens, transposed": (lambda x: x.transpose(1, 2), TOKENS, nn.Linear, 5),
    "tokens, pooled": (lambda x: F.max_pool2d(x, (1, 2)), TOKENS, nn.Linear, 2),
    "tokens, pooled to as many": (lambda x: F.adaptive_max_pool2d(x, (5, 4)), TOKENS, nn.Linear, 4),
    "dropout": (nn.Sequential(nn.Dropout2d(0.5), nn.Identity()), IMAGES, nn.Conv2d, 4),
}


def random_pair(name, seed, spread=1.0):
    between, shape, kind, inputs = BETWEEN[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Conv2d(3, 4, 3) if shape == IMAGES else nn.Linear(6, 4)
        second = nn.Conv2d(inputs, 5, 1) if kind is nn.Conv2d else nn.Linear(inputs, 5)
        with torch.no_grad():
            for layer in (first, second):
                layer.weight *= 10 ** (spread * torch.randn_like(layer.weight[:, :1]))
            first.bias += 10 ** (spread * torch.randn(4)) * torch.randint(-1, 2, (4,))
        return Between(first, between, second).eval(), torch.randn(8, *shape)


@pytest.mark.parametrize("name", BETWEEN)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 20))
def test_outputs_stay_whatever_is_between(name, seed):
    network, x = random_pair(name, seed)
    with torch.no_grad():
        expected = network(x)
        graph = trace(network)
        pairs = equalised(graph, x)
        torch.testing.assert_close(graph(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        crossed = name in ("flatten(1)", "global pool", "pool of 2x2", "padded pool", "padded maximum", "divisor")
        crossed |= name in ("tokens", "tokens, flattened", "dropout")
        assert pairs == ([("first", "second")] if crossed else [])


@pytest.mark.parametrize("name", BETWEEN)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 20))
def test_absorption_does_no_more_than_raising_what_relus_put_out(name, seed):
    network, x = random_pair(name, seed, 0.3)
    with torch.no_grad():
        graph = trace(network)
        mean, variance = output_moments(graph, ["first"], x)["first"]
        constant = (mean - 3 * variance.sqrt()).clamp(min=0)
        values = network.first(x)
        shape = (-1, 1, 1) if values.dim() == 4 else (-1,)
        least = constant.view(shape)
        pairs = absorbed(graph, {"first": (mean, variance)}, x)
        expected = network.second(network.between(torch.maximum(values.relu(), least) if pairs else values.relu()))
        torch.testing.assert_close(graph(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        # Scarf's bound of what lies below a level, for any distribution.
        below = (least - values.relu()).clamp(min=0).movedim(1 if values.dim() == 4 else -1, 0).flatten(1).mean(1)
        assert (below <= 0.0812 * variance.sqrt() + 1e-6).all()
        assert not pairs or name not in ("padded pool", "divisor")


def test_a_pass_that_changes_the_function_is_refused(monkeypatch):
    def wrong(graph, example):
        graph.get_submodule("2").weight.data[0] *= 1.01
        return []

    network, x = chain(lambda: nn.Linear(6, 6), nn.ReLU, lambda: nn.Linear(6, 6), nn.ReLU, lambda: nn.Linear(6, 4)), 0
    x = torch.randn(64, 6, generator=GENERATOR)
    monkeypatch.setattr(passes, "equalise", wrong)
    with pytest.raises(UnsupportedLayerError, match=r"Linear '2' puts out something else once weight ranges are equal"):
        calibrate(network, x, parse_scheme("linear+equalisation"))
    monkeypatch.setattr(passes, "absorb", lambda graph, moments, example: wrong(graph, example))
    with pytest.raises(UnsupportedLayerError, match=r"Linear '2' puts .* absorbed by the next layer.*\+absorption"):
        calibrate(network, x, parse_scheme("linear+absorption"))


def test_absorption_that_raises_much_is_refused():
    network, x = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval(), torch.zeros(1000, 1)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.fill_(10.0)
        network[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network[2].bias.copy_(torch.tensor([-10.0, 10.0]))
    x[::100] = -10.0  # seldom, and decisive
    with pytest.raises(UnsupportedLayerError, match=r"Absorbing biases moves .* Leave \+absorption out"):
        calibrate(network, x, parse_scheme("linear+absorption"))
    calibrate(network, x, parse_scheme("linear+equalisation"))


def test_values_that_something_else_reads_are_not_scaled():
    graph = trace(branched())
    x = torch.randn(4, 3, 16, 16, generator=GENERATOR)
    assert equalised(graph, x) == [("block.grouped", "block.depthwise")]
    torch.testing.assert_close(graph(x), branched()(x), rtol=1e-4, atol=1e-4)


def test_dead_channels_are_left_alone():
    network = chain(lambda: nn.Linear(3, 4), nn.ReLU, lambda: nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight[1] = 0
        network[2].weight[:, 2] = 0
    graph = trace(network)
    x = torch.randn(5, 3, generator=GENERATOR)
    equalise(graph, x)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(graph.get_submodule("0").bias[1:3], network[0].bias[1:3])


def test_the_digits_network_is_equalised_through_its_pool():
    task = get_task("digits")
    graph = trace(task.network)
    x = task.splits["search"].inputs[:64]
    assert ("block3.pointwise", "classifier") in equalised(graph, x)
    torch.testing.assert_close(graph(x), task.network(x), rtol=1e-3, atol=1e-3)


def test_a_torchvision_network_keeps_its_outputs():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision().models.resnet18(weights=None, num_classes=10).eval()
    graph = trace(network)
    x = torch.randn(2, 3, 32, 32, generator=GENERATOR)
    assert len(equalise(graph, x[:1])) == 8  # within each block; residual adds end the others
    torch.testing.assert_close(graph(x), network(x), rtol=1e-3, atol=1e-3)


def test_absorption_by_hand():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.copy_(torch.tensor([10.0, 2.0]))
        network[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
        network[2].bias.fill_(1.0)
    graph = trace(network)
    moments = {"0": (torch.tensor([10.0, 2.0]), torch.tensor([1.0, 1.0]))}
    assert absorbed(graph, moments, torch.ones(1, 1)) == [("0", "2")]
    torch.testing.assert_close(graph.get_submodule("0").bias, torch.tensor([3.0, 2.0]))  # c = (10 - 3, 0)
    torch.testing.assert_close(graph.get_submodule("2").bias, torch.tensor([15.0]))  # 1 + 2 * 7
    above, below = torch.tensor([[-3.0]]), torch.tensor([[-5.0]])
    torch.testing.assert_close(graph(above), network(above))
    assert (graph(below) - network(below)).item() == pytest.approx(2 * 2)  # 5 became 7


class ClippedFromBelow(nn.Module):
    """What absorbing a constant makes of a ReLU: max(z, c)."""

    def __init__(self, constant):
        super().__init__()
        self.constant = constant.view(-1, 1, 1)

    def forward(self, x):
        return torch.maximum(x.relu(), self.constant)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_absorption_changes_nothing_but_values_below_the_constant(groups, bias):
    network = chain(
        *(lambda: nn.Conv2d(3, 8, 3, bias=True), nn.ReLU, lambda: nn.AvgPool2d(2)),
        lambda: nn.Conv2d(8, 8, 3, groups=groups, bias=bias),
    )
    with torch.no_grad():
        network[0].bias += torch.linspace(-20, 60, 8)
    x = torch.randn(16, 3, 12, 12, generator=GENERATOR)
    graph = trace(network)
    moments = output_moments(graph, ["0", "3"], x)
    constant = (moments["0"][0] - 3 * moments["0"][1].sqrt()).clamp(min=0)
    assert 0 < (constant > 0).sum() < 8
    assert absorbed(graph, moments, x) == [("0", "3")]
    with torch.no_grad():
        assert network[0](x).flatten(2).lt(constant[:, None]).float().mean((0, 2))[constant > 0].max() < 0.01
        clipped = nn.Sequential(network[0], ClippedFromBelow(constant), *network[2:])
        torch.testing.assert_close(graph(x), clipped(x), rtol=1e-4, atol=1e-3)
        assert graph.get_submodule("0")(x).relu().amax((0, 2, 3))[-1] < 0.7 * network[0](x).amax((0, 2, 3))[-1]


@pytest.mark.parametrize(
    ("between", "second"),
    [
        (nn.ReLU, lambda: nn.Conv2d(4, 4, 3, padding=1)),
        (nn.ReLU, lambda: nn.Conv2d(4, 4, 3, padding="same")),
        (nn.ReLU6, lambda: nn.Conv2d(4, 4, 3)),
        (lambda: nn.AvgPool2d(3, padding=1), lambda: nn.Conv2d(4, 4, 1)),
        (lambda: nn.AvgPool2d(2, divisor_override=3), lambda: nn.Conv2d(4, 4, 1)),
    ],
)
def test_nothing_is_absorbed_where_zeros_would_stand_for_the_constant(between, second):
    network = chain(lambda: nn.Conv2d(3, 4, 1), between, second)
    graph = trace(network)
    assert absorbed(graph, {"0": (torch.ones(4), torch.zeros(4))}, torch.ones(1, 3, 8, 8)) == []
    assert torch.equal(graph.get_submodule("0").bias, network[0].bias)


def test_a_scheme_with_absorption_has_finer_activations():
    network = chain(lambda: nn.Linear(3, 4), nn.ReLU, lambda: nn.Linear(4, 2))
    with torch.no_grad():
        network[0].bias += 100
    x = torch.randn(256, 3, generator=GENERATOR)
    plain, absorbed = (calibrate(network, x, parse_scheme(text)) for text in ("linear", "linear+absorption"))
    node = plain.site_of("2").node
    assert absorbed.site_grids[node][8].scale < 0.6 * plain.site_grids[node][8].scale
    torch.testing.assert_close(absorbed.graph(x), network(x), rtol=1e-2, atol=1.0)
