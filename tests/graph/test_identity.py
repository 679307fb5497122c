"""Equal networks have equal identities, on every machine (`test_other_machines`); others have others."""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.core.files import content_hash
from quantenv.evaluation import make_evaluator
from quantenv.graph.identity import fingerprint, network_content, tensor_digest
from quantenv.tasks import Split, Task

INPUTS = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SCALE = 1.0


@torch.fx.wrap
def wrapped(x):
    return x * SCALE


@torch.fx.wrap
def calling(x, factor=1.0):
    return inner(x) * factor


def inner(x):
    return x + 1.0


class Net(nn.Module):
    factor = 1.0

    def __init__(self, gain=1.0, activation=torch.relu, padding=1, eps=1e-5):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=padding)
        self.norm = nn.BatchNorm2d(4, eps=eps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)
        self.gain, self.activation = gain, activation
        self.shift = torch.zeros(3)
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x):
        x = self.activation(self.gain * self.norm(self.conv(x)))
        x = calling(wrapped(self.pool(x).flatten(1))) * self.factor
        return (self.head(x) + self.shift) * self.hidden


class Child(Net):
    def forward(self, x):
        return -super().forward(x)


def net(kind=Net, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(**options).eval()


def identity(network):
    return content_hash(network_content(network, INPUTS))


def test_equal_networks_are_equal():
    network = net()
    assert identity(network) == identity(net()) == identity(copy.deepcopy(network))
    assert identity(pickle.loads(pickle.dumps(network))) == identity(network)


def _changed(change):
    network = net()
    change(network)
    return network


def _set(name, value):
    return lambda: _changed(lambda network: setattr(network, name, value))


def _closure(factor):
    def activation(x):
        return torch.relu(x) * factor

    return net(activation=activation)


def _hooked(path, hook, pre=False):
    network = net()
    module = network.get_submodule(path)
    (module.register_forward_pre_hook if pre else module.register_forward_hook)(hook)
    return network


OTHERS = {
    "a plain attribute": _set("gain", -1.0),
    "nearly the same attribute": _set("gain", 1.0 + 1e-12),
    "a tensor that is no buffer": _set("shift", torch.full((3,), 1e-9)),
    "a buffer that is not saved": lambda: _changed(lambda network: network.hidden.mul_(2)),
    "another activation": lambda: net(activation=nn.functional.gelu),
    "a lambda": lambda: net(activation=lambda x: torch.relu(x) - x),
    "a closure's value": lambda: _closure(2.0),
    "another padding mode": lambda: _changed(lambda network: setattr(network.conv, "padding_mode", "circular")),
    "another padding": lambda: net(padding=0),
    "another epsilon": lambda: net(eps=1e-4),
    "another forward": lambda: net(Child),
    "a forward of the instance": lambda: _changed(
        lambda network: setattr(network, "forward", types.MethodType(lambda self, x: Net.forward(self, x) + 1, network))
    ),
    "an attribute of the class": lambda: net(type("Net", (Net,), {"factor": 2.0})),
    "a hook of the network": lambda: _hooked("", lambda module, inputs, output: output * 2),
    "a hook of a layer": lambda: _hooked("conv", lambda module, inputs, output: output * 1.00001),
    "a hook in front of a layer": lambda: _hooked("head", lambda module, inputs: (inputs[0] * 1.00001,), pre=True),
    "a weight's last digit": lambda: _changed(lambda network: network.head.weight.data[0, 0].mul_(1 + 2e-7)),
    "another type of number": lambda: _changed(lambda network: network.head.to(torch.float64)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_computes_something_else_is_told_apart(what):
    parts, others = list(network_content(net(), INPUTS)), list(network_content(OTHERS[what](), INPUTS))
    assert parts != others


def test_wrapped_functions_are_told_apart_by_code_defaults_and_what_they_refer_to(monkeypatch):
    found = [identity(net())]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 1.0 + 1e-12)
    found.append(identity(net()))
    monkeypatch.setattr(calling, "__defaults__", (1.0 + 1e-12,))
    found.append(identity(net()))
    monkeypatch.setattr(inner, "__code__", (lambda x: x + 1.000000001).__code__)
    found.append(identity(net()))
    assert len(set(found)) == 4
    monkeypatch.undo()
    assert identity(net()) == found[0]


def test_what_neither_graph_nor_code_shows_is_seen_in_the_outputs():
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 1.001)
    try:
        changed = identity(net())
    finally:
        handle.remove()
    assert changed != identity(net())


def test_tensors_are_told_apart_by_type_and_shape():
    values = torch.arange(6.0)
    digests = {tensor_digest(each) for each in (values, values.view(2, 3), values.view(3, 2), values.view(torch.int32))}
    assert len(digests) == 4
    assert tensor_digest(values.view(2, 3)) == tensor_digest(values.view(3, 2).t().contiguous().t().reshape(2, 3))


class Casting(nn.Module):
    """Casts inside, as networks do that insist on a type."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(16, 3)

    def forward(self, x):
        weight = self.layer.weight.to(self.kind)
        return nn.functional.linear(x.flatten(1).to(self.kind), weight).float() + torch.zeros(3)


def test_networks_that_cast_have_fingerprints_too():
    torch.manual_seed(0)
    network = Casting(torch.float32)
    expected = fingerprint(network, INPUTS)
    network.kind = torch.bfloat16
    assert fingerprint(network, INPUTS) == expected  # both compute in double precision here: their graphs differ
    assert identity(Casting(torch.float32)) != identity(Casting(torch.bfloat16))


def task(network):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(40, 1, 4, 4, generator=generator), torch.arange(40) % 3
    cut = {"train": slice(0, 16), "calibration": slice(0, 8), "search": slice(16, 28), "test": slice(28, 40)}
    return Task("t", network, {name: Split(images[part], labels[part]) for name, part in cut.items()})


def test_the_store_does_not_answer_for_another_forward(tmp_path):
    location = str(tmp_path / "evaluations.sqlite")
    for network in (net(), net(gain=-1.0), net(Child)):
        through = make_evaluator("ptq-float", task(network), location)
        alone = make_evaluator("ptq-float", task(network), "off")
        allocations = [Allocation.make(alone.layers, 4, 8)]
        assert through.evaluate(allocations) == alone.evaluate(allocations)


def test_a_task_s_numbers_do_not_change_with_the_network_that_it_was_made_of(tmp_path):
    network = net()
    made = task(network)
    before = made.identity, make_evaluator("ptq-float", made, "off").reference
    network.gain = -1.0
    network.head.weight.data.neg_()
    again = make_evaluator("ptq-float", made, "off")
    assert (made.identity, again.reference) == before
    assert task(network).identity != made.identity
