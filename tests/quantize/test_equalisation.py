import pytest
import torch
from torch import nn

from quantenv.quantize import calibrate, parse_scheme
from quantenv.quantize.corrections import measure
from quantenv.quantize.equalisation import absorb, equalise
from quantenv.quantize.tracing import trace
from quantenv.tasks import get_task
from quantenv.tasks.vision import torchvision
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
    assert equalise(graph) == [("0", "3")]
    out, into = ranges(graph, "0", "3", groups)
    torch.testing.assert_close(out, into, rtol=1e-3, atol=0)
    x = torch.randn(2, 3, 12, 12, generator=GENERATOR)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)


def test_a_pair_has_the_factors_of_equation_11():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[4.0], [1.0]]))
        network[0].bias.copy_(torch.tensor([8.0, 2.0]))
        network[2].weight.copy_(torch.tensor([[1.0, 9.0]]))
    graph = trace(network)
    equalise(graph)
    # s = sqrt(r1 r2) / r2 = (2, 1/3)
    torch.testing.assert_close(graph.get_submodule("0").weight, torch.tensor([[2.0], [3.0]]))
    torch.testing.assert_close(graph.get_submodule("0").bias, torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(graph.get_submodule("2").weight, torch.tensor([[2.0, 3.0]]))


def test_a_chain_of_three_is_swept_until_it_rests():
    network = chain(*(lambda: nn.Linear(6, 6), nn.ReLU) * 2, lambda: nn.Linear(6, 4))
    graph = trace(network)
    assert equalise(graph) == [("0", "2"), ("2", "4")]
    for first, second in (("0", "2"), ("2", "4")):
        torch.testing.assert_close(*ranges(graph, first, second), rtol=1e-2, atol=0)
    x = torch.randn(5, 6, generator=GENERATOR)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("between", [nn.ReLU6, nn.SiLU, nn.Sigmoid])
def test_functions_that_are_not_homogeneous_are_not_crossed(between):
    network = chain(lambda: nn.Linear(3, 4), between, lambda: nn.Linear(4, 2))
    graph = trace(network)
    assert equalise(graph) == []
    assert torch.equal(graph.get_submodule("0").weight, network[0].weight)


def test_flattening_several_positions_is_not_crossed():
    network = chain(lambda: nn.Conv2d(1, 2, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(8, 2))
    assert equalise(trace(network)) == []


def test_values_that_something_else_reads_are_not_scaled():
    graph = trace(branched())
    assert equalise(graph) == [("block.grouped", "block.depthwise")]
    x = torch.randn(4, 3, 16, 16, generator=GENERATOR)
    torch.testing.assert_close(graph(x), branched()(x), rtol=1e-4, atol=1e-4)


def test_dead_channels_are_left_alone():
    network = chain(lambda: nn.Linear(3, 4), nn.ReLU, lambda: nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight[1] = 0
        network[2].weight[:, 2] = 0
    graph = trace(network)
    equalise(graph)
    x = torch.randn(5, 3, generator=GENERATOR)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(graph.get_submodule("0").bias[1:3], network[0].bias[1:3])


def test_the_digits_network_is_equalised_through_its_pool():
    task = get_task("digits")
    graph = trace(task.network)
    assert ("block3.pointwise", "classifier") in equalise(graph)
    x = task.splits["search"].inputs[:64]
    torch.testing.assert_close(graph(x), task.network(x), rtol=1e-3, atol=1e-3)


def test_a_torchvision_network_keeps_its_outputs():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision().models.resnet18(weights=None, num_classes=10).eval()
    graph = trace(network)
    assert len(equalise(graph)) == 8  # within each block; residual adds end the others
    x = torch.randn(2, 3, 32, 32, generator=GENERATOR)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-3, atol=1e-3)


def test_absorption_by_hand():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.copy_(torch.tensor([10.0, 2.0]))
        network[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
        network[2].bias.fill_(1.0)
    graph = trace(network)
    assert absorb(graph, {"0": (torch.tensor([10.0, 2.0]), torch.tensor([1.0, 1.0]))}) == [("0", "2")]
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
    moments = measure(graph, ["0", "3"], x).moments
    constant = (moments["0"][0] - 3 * moments["0"][1].sqrt()).clamp(min=0)
    assert 0 < (constant > 0).sum() < 8
    assert absorb(graph, moments) == [("0", "3")]
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
    ],
)
def test_nothing_is_absorbed_where_zeros_would_stand_for_the_constant(between, second):
    network = chain(lambda: nn.Conv2d(3, 4, 1), between, second)
    graph = trace(network)
    assert absorb(graph, {"0": (torch.ones(4), torch.zeros(4))}) == []
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
