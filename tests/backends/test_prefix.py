import random

import pytest
import torch

from quantenv.backends.prefix import PrefixRunner
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.quantization.calibrating import calibrate
from tests.networks import BACKENDS, branched

INPUTS = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CALIBRATION = calibrate(branched(), INPUTS)


def random_allocations(count, seed=0):
    rng = random.Random(seed)
    layers = CALIBRATION.layers
    return [
        Allocation.make(layers, [rng.randint(1, 8) for _ in layers], [rng.choice([2, 8]) for _ in layers])
        for _ in range(count)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ordered", [True, False])
def test_shared_prefixes_change_no_bit_of_any_output(backend, ordered):
    network = backend(CALIBRATION)
    allocations = random_allocations(40)
    settings = network.settings(allocations)
    settings += settings[:3]
    if ordered:
        settings.sort()
    shared = [logits.clone() for logits in PrefixRunner(network).run(INPUTS[:8], settings)]
    for wanted, logits in zip(settings, shared, strict=True):
        network.switch(wanted)
        assert torch.equal(network(INPUTS[:8]), logits)


def test_each_distinct_prefix_runs_once():
    network = QuantizedNetwork(CALIBRATION)
    layers = CALIBRATION.layers
    calls = {layer.name: 0 for layer in layers}
    for layer in layers:
        module = network.module.get_submodule(layer.name)
        module.register_forward_hook(
            lambda *_, name=layer.name: calls.__setitem__(name, calls[name] + 1)  # counted for each layer
        )
    options = (2, 4, 8)
    bits = [(a, b, c, 8, 8, 8) for a in options for b in options for c in options]
    settings = sorted(network.settings([Allocation.make(layers, row) for row in bits]))
    for _ in PrefixRunner(network).run(INPUTS[:4], settings):
        pass
    assert list(calls.values()) == [3, 9, 27, 27, 27, 27]


def test_only_what_a_later_allocation_starts_from_is_kept(monkeypatch):
    sizes = []

    def advance(self, registers, position, wanted, kept):
        original(self, registers, position, wanted, kept)
        sizes.append(len(kept))

    original = PrefixRunner._advance
    monkeypatch.setattr(PrefixRunner, "_advance", advance)
    network = QuantizedNetwork(CALIBRATION)
    rows = [(2, 2, 8, 8, 8, tail) for tail in (2, 4)] + [(2, 4, 8, 8, 8, tail) for tail in (2, 4, 6)]
    settings = network.settings([Allocation.make(CALIBRATION.layers, row) for row in rows])
    list(PrefixRunner(network).run(INPUTS[:2], settings[:1] * 2))
    assert sizes == [0]
    sizes.clear()
    list(PrefixRunner(network).run(INPUTS[:2], settings))
    assert sizes == [2, 1, 1, 1, 0]  # in front of the second layer, of the last one, or of both


def test_inputs_are_left_alone():
    network = QuantizedNetwork(CALIBRATION)
    inputs = INPUTS[:4].clone()
    settings = sorted(network.settings(random_allocations(10)))
    list(PrefixRunner(network).run(inputs, settings))
    assert torch.equal(inputs, INPUTS[:4])
