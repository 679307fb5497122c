"""What is prepared computes what the user's network does: whatever differs before anything is rounded is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.verification import check_integers
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError, UnsupportedLayerError
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.graph.naming import name_of
from quantenv.graph.tracing import trace
from quantenv.graph.verification import check_trace
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.simulated import rewire
from quantenv.quantization.switched import SwitchedLayer
from quantenv.quantization.verification import check_rewritten
from quantenv.tasks import Split, Task, get_task
from tests.networks import branched

INPUTS = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.fx.wrap
def rarely(x):
    """Changes what hardly any batch shows."""
    return x.where(INPUTS[33, 0, 0, 0] != x[:, :1, :1, :1], 2 * x)


class Rare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.traced = branched(), False

    def forward(self, x):
        return self.inner(x if self.traced else rarely(x))


def test_all_calibration_inputs_are_compared():
    network = Rare().eval()
    network.traced = True
    graph = trace(network)
    network.traced = False
    check_trace(network, graph, INPUTS[:33], 16)
    with pytest.raises(UnsupportedLayerError, match=r"Rare puts out something else, first in Conv2d 'inner\.stem'"):
        check_trace(network, graph, INPUTS, 16)


@pytest.mark.parametrize("layer", ["stem", "block.grouped", "block.depthwise", "head"])
def test_the_first_layer_that_differs_from_the_network_is_named(layer):
    network, graph = branched(), trace(branched())
    check_trace(network, graph, INPUTS, 16)
    graph.get_submodule(layer).weight.data *= 1.01
    with pytest.raises(UnsupportedLayerError, match=f"first in {type(graph.get_submodule(layer)).__name__} '{layer}'"):
        check_trace(network, graph, INPUTS, 16)


def test_float_arithmetic_is_no_difference():
    network = branched()
    for scale in (1e-12, 1e12):  # of batch norms that all but cancel, too
        network.stem_norm.running_var.fill_(1e-20)
        network.stem.weight.data *= scale
        calibrate(network, INPUTS)


@pytest.mark.parametrize("layer", ["stem", "left", "head"])
def test_the_first_layer_that_is_rewritten_to_something_else_is_named(layer, monkeypatch):
    calibration = calibrate(branched(), INPUTS)
    wrong = calibration.graph.get_submodule(layer).weight.shape

    def forward(self, x):
        return right(self, x) * (1.001 if self.float_weight.shape == wrong else 1)

    right = SwitchedLayer.forward
    monkeypatch.setattr(SwitchedLayer, "forward", forward)
    with pytest.raises(UnsupportedLayerError, match=f"'{layer}' puts out something else once it is rewritten"):
        check_rewritten(calibration)


def test_an_operation_that_is_lost_is_named(monkeypatch):
    def without_adding(calibration, make_site, make_layer):
        module = rewire(calibration, make_site, make_layer)
        for node in module.graph.nodes:
            if node.name == "add_1":
                node.args = (node.args[0], node.args[0])
        module.recompile()
        return module

    calibration = calibrate(branched(), INPUTS)
    monkeypatch.setattr("quantenv.quantization.verification.rewire", without_adding)
    with pytest.raises(UnsupportedLayerError, match="add behind Conv2d 'left' puts out"):
        check_rewritten(calibration)


def test_operations_are_named_by_the_layer_in_front_of_them():
    graph = trace(branched())
    names = [name_of(node, graph) for node in graph.graph.nodes]
    assert names[0] == "The network's input"
    assert "Conv2d 'block.depthwise'" in names
    assert "add behind Conv2d 'block.depthwise'" in names


@pytest.mark.parametrize("layer", ["stem", "head"])
def test_integers_that_compute_something_else_are_refused(layer, monkeypatch):
    calibration = calibrate(branched(), INPUTS)
    check_integers(IntegerNetwork(calibration))
    right = SwitchedLayer.scales

    def scales(self, *bits):
        found = right(self, *bits)
        return replace(found, weight_scale=found.weight_scale * 1.5, unit=found.unit * 1.5) if wrong(self) else found

    def wrong(self):
        return self.name == layer

    broken = IntegerNetwork(calibration)
    monkeypatch.setattr(SwitchedLayer, "scales", scales)
    broken._selected = [None] * len(broken._selected)  # so that all are chosen again
    broken.select(Allocation.make(calibration.layers, 8, 8))
    monkeypatch.setattr(SwitchedLayer, "scales", right)
    with pytest.raises(UnsupportedLayerError, match=f"'{layer}' puts out something else than the same rounding"):
        check_integers(broken)


@pytest.mark.parametrize("kernels", ["float32", "auto"])
def test_evaluators_in_integers_check_them(kernels, monkeypatch):
    checked = []
    monkeypatch.setattr("quantenv.evaluation.post_training.check_integers", checked.append)
    evaluator = PTQEvaluator(get_task("digits"), "integer", kernels)
    assert checked == [evaluator.network]


class Divided(nn.Module):
    """Divides by what may be zero, and hides the outcome or not."""

    def __init__(self, hidden):
        super().__init__()
        self.first, self.head, self.hidden = nn.Linear(8, 8), nn.Linear(8, 3), hidden

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x / x
        return self.head(torch.where(x == x, x, torch.zeros_like(x)) if self.hidden else x)


@pytest.mark.parametrize("hidden", [True, False])
def test_values_that_are_not_finite_are_refused_where_they_come_up(hidden):
    with pytest.raises(QuantenvError, match=r"truediv behind Linear 'first' puts out NaN or infinity.*by zero\.$"):
        calibrate(Divided(hidden).eval(), torch.randn(20, 8))


@pytest.mark.parametrize(("statistic", "value"), [("running_var", "nan"), ("running_mean", "inf")])
def test_statistics_that_are_not_finite_are_refused(statistic, value):
    network = branched()
    getattr(network.block.norm, statistic)[2] = float(value)  # a ReLU makes 0 of minus infinity
    with pytest.raises(QuantenvError, match=r"Conv2d 'block\.grouped' has NaN or infinity in its weights once"):
        calibrate(network, INPUTS)


def test_a_network_that_is_not_finite_on_held_out_samples_is_refused():
    class Logarithm(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.log(x[:, :, 0] + 0.5))

    x = torch.rand(60, 8, 1, generator=torch.Generator().manual_seed(0))
    x[45, 3] = -2.0
    labels = torch.arange(60) % 3
    cut = {"train": slice(0, 20), "calibration": slice(0, 20), "search": slice(20, 50), "test": slice(50, 60)}
    task = Task("t", Logarithm().eval(), {name: Split(x[part], labels[part]) for name, part in cut.items()})
    with pytest.raises(QuantenvError, match="on 1 of 30 samples of the split 'search', first on sample 25"):
        PTQEvaluator(task, "float")
