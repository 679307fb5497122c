import torch
from torch import nn

from quantenv.graph.sites import find_sites
from quantenv.graph.tracing import trace
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched

EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_sites_are_where_integer_hardware_stores_tensors():
    sites = {site.node: site for site in find_sites(trace(branched()), EXAMPLE[:1])}
    readers = [(site.layers, site.shared) for site in sites.values()]
    assert readers == [
        (("stem",), False),  # the network's input
        (("block.grouped",), True),  # the stem after its ReLU; the max pool only moves it; the add reads it too
        (("block.depthwise",), False),  # the grouped convolution after its ReLU
        ((), True),  # the depthwise output, before the add
        (("left", "right"), False),  # the add after its ReLU, one input of two layers
        ((), True),  # left, before the add
        ((), True),  # right, before the add
        ((), True),  # the second add, before the pool
        (("head",), False),  # the average pool
    ]
    assert sites["x"].features == 3 * 16 * 16


def test_every_convolution_of_resnet18_reads_and_writes_a_site():
    graph = trace(torchvision().models.resnet18(weights=None).eval())
    sites = find_sites(graph, torch.randn(1, 3, 64, 64))
    convolutions = [name for name, module in graph.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 20
    read = [name for site in sites for name in site.layers]
    assert sorted(read) == sorted([*convolutions, "fc"])
    # input, stem, 8 blocks with 2 convolutions and an add each, 3 shortcut convolutions, average pool
    assert len(sites) == 1 + 1 + 8 * 3 + 3 + 1


def test_zero_padding_moves_values_and_other_padding_makes_them():
    class Padded(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value
            self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.second(nn.functional.pad(self.first(x)[:, :, ::2], (1, 1), value=self.value))

    for value, sites in ((None, 2), (0.0, 2), (1.0, 3)):
        assert len(find_sites(trace(Padded(value)), torch.randn(1, 2, 4, 4))) == sites


class Attending(nn.Module):
    """Attention, then a classifier that puts out shares."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        return torch.softmax(self.head(self.norm(x + y).mean(1)), -1)


def test_a_softmax_reads_accumulators_and_stores_its_shares():
    sites = find_sites(trace(Attending().eval()), torch.randn(1, 5, 8))
    projections = tuple(f"attention.{name}_proj" for name in "qkv")
    assert [(site.layers, site.shared) for site in sites] == [
        (projections, True),  # the network's input, which the residual add reads too
        ((), True),  # queries
        ((), True),  # keys; scores and their scale are no sites: a softmax reads them
        ((), True),  # shares
        ((), True),  # values
        (("attention.out_proj",), False),  # the mixed values
        ((), True),  # the projected ones, before the add
        ((), True),  # the add, which the norm reads
        ((), True),  # the norm, which the mean reads
        (("head",), False),  # the mean; the head's sums go to the softmax as they are
    ]
    assert sites[0].features == 5 * 8


def test_reading_a_shape_is_not_reading_a_value():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.first(x)
            batch, channels, height, width = x.size()
            return self.second(x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2))

    sites = find_sites(trace(Shuffled()), torch.randn(1, 2, 4, 4))
    assert [(site.layers, site.shared) for site in sites] == [(("first",), False), (("second",), False)]


def test_a_constant_is_stored_for_the_layer_that_reads_it():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 2))
            self.layer, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(x + self.token + self.layer(self.token.expand(len(x), -1)))

    sites = find_sites(trace(Constant()), torch.randn(3, 2))
    assert [(site.node, site.layers) for site in sites if site.layers] == [("token", ("layer",)), ("add_1", ("head",))]


def test_values_that_are_chosen_are_stored_already_and_those_in_collections_are_stored_when_taken():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(12, 2)

        def forward(self, x):
            largest = self.a(x).max(1)[0]
            variance, mean = torch.var_mean(self.b(x), dim=1)
            return self.head(torch.cat([largest, variance, torch.fft.fft(mean).real], 1))

    sites = {site.node: site for site in find_sites(trace(Choosing()), torch.randn(1, 3, 4))}
    assert set(sites) == {"x", "a", "b", "getitem_1", "getitem_2", "getattr_1", "cat"}
    assert sites["a"].shared
