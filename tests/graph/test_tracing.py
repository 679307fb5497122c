import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantenv.backends.prefix import PrefixRunner
from quantenv.core.allocation import Allocation
from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.tracing import fold_linear_norms, trace
from quantenv.quantization.calibrating import calibrate
from tests.networks import BACKENDS, branched

EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_folding_batch_norms_changes_nothing():
    network = branched()
    folded = trace(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(EXAMPLE), network(EXAMPLE), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_linear_batch_norms_are_folded_too():
    network = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    network[1].running_mean.normal_()
    x = torch.randn(3, 4)
    folded = trace(network)
    fold_linear_norms(folded, x)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    torch.testing.assert_close(folded(x), network(x))


def test_norms_of_tokens_are_kept():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    network[1].running_mean.normal_()
    x = torch.randn(3, 6, 4)  # as many tokens as features
    folded = trace(network)
    fold_linear_norms(folded, x)
    assert any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    torch.testing.assert_close(folded(x), network(x))


def test_untraceable_networks_are_named():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(UnsupportedLayerError, match=r"Cannot trace Branching.*Control flow"):
        trace(Branching())


def test_a_layer_used_twice_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(UnsupportedLayerError, match="'layer' runs 2 times"):
        trace(Twice())


def test_it_says_in_which_module_the_trace_stopped():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Branching()))
    with pytest.raises(UnsupportedLayerError, match=r"in module '1\.1' \(Branching\)"):
        trace(network)


class _Spelled(nn.Module):
    """A network whose forward() has options, names arguments, and flattens by views."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.linear = nn.Linear(8 * 49, 16)
        self.rms = nn.RMSNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, image, mask=None, *, pooled=True, **others):
        x = self.slope(self.norm(input=self.conv(input=image)))
        x = self.instance(self.conv2(x))
        if mask is not None:
            x = x * mask
        if pooled:
            x = F.max_pool2d(input=F.relu(input=x), kernel_size=2)
        x = torch.flatten(input=x.view_as(x).view(x.shape[0], -1), start_dim=1).view(size=(-1, 8 * 49))
        return self.head(self.rms(self.linear(x)))


def test_options_names_and_views_of_a_network_are_followed():
    torch.manual_seed(0)
    network = _Spelled().eval()
    network.norm.running_mean.normal_()
    graph = trace(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    assert [node.op for node in graph.graph.nodes].count("placeholder") == 1
    with torch.no_grad():
        logits = network(EXAMPLE)
        torch.testing.assert_close(graph(EXAMPLE), logits, rtol=1e-4, atol=1e-5)
        # convolutions compute channels-last, of which x.view(len(x), -1) would be none
        torch.testing.assert_close(graph(EXAMPLE.to(memory_format=torch.channels_last)), logits, rtol=1e-4, atol=1e-5)
    assert type(network) is _Spelled
    calibration = calibrate(network, EXAMPLE)
    for kind in BACKENDS:
        quantized = kind(calibration)
        quantized.select(Allocation.make(calibration.layers, 8, 8))
        error = (quantized(EXAMPLE) - logits).abs().max()
        assert 0 < error < 0.05 * logits.abs().max()


def test_a_view_of_the_bits_of_values_stays_one():
    class Bits(nn.Module):
        def forward(self, x):
            return x.view(torch.int32)

    assert [node.target for node in trace(Bits()).graph.nodes if node.op == "call_method"] == ["view"]


class _InPlace(nn.Module):
    """Changes tensors in place that it reads again, in every spelling."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = skip = self.stem(x)
        x = self.conv(self.relu(x))  # and so skip is rectified
        x += skip
        skip = x
        x = self.relu(self.conv2(F.silu(x, inplace=True)))  # so is this one squashed
        x.mul_(0.5)
        skip += x
        x = torch.relu_(skip - 0.1)
        size = larger = x.shape[2]
        larger += 2  # a number: size stays
        x = F.interpolate(x, size=(larger, larger))[:, :, :size, :size]
        return self.head((skip + x).clamp_(max=3).mean((2, 3)))


def test_what_is_changed_in_place_is_changed_for_all_that_read_it_later():
    torch.manual_seed(0)
    network = _InPlace().eval()
    with torch.no_grad():
        logits = network(EXAMPLE)
        assert torch.equal(trace(network)(EXAMPLE), logits)
    assert network.relu.inplace
    calibration = calibrate(network, EXAMPLE)
    for backend in BACKENDS:
        quantized = backend(calibration)
        quantized.select(Allocation.make(calibration.layers, 8, 8))
        assert (quantized(EXAMPLE) - logits).norm() < 0.05 * logits.norm()


def test_prefixes_are_run_on_from_where_something_is_changed_in_place():
    torch.manual_seed(0)
    calibration = calibrate(_InPlace().eval(), EXAMPLE)
    allocations = [Allocation.make(calibration.layers, [8, a, b, 8], 8) for a in (2, 4, 8) for b in (2, 4, 8)]
    for backend in BACKENDS:
        network = backend(calibration)
        shared = PrefixRunner(network).run(EXAMPLE, network.settings(allocations))
        outputs = [logits.clone() for logits in shared]
        for allocation, logits in zip(allocations, outputs, strict=True):
            network.select(allocation)
            assert torch.equal(network(EXAMPLE), logits)


def test_a_network_whose_trace_computes_something_else_is_refused():
    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            x = self.layer(x)
            x[:, :1].mul_(0.5)
            return x

    with pytest.raises(UnsupportedLayerError, match=r"Halving puts out something else.*no view of a tensor in place"):
        calibrate(Halving(), torch.randn(8, 4))
