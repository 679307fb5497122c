import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.allocation import Allocation
from quantenv.graph.activations import find_activations
from quantenv.graph.layers import describe
from quantenv.hardware import compile_costs, load_device
from quantenv.hardware.memory import peak_memory
from quantenv.quantization.calibrating import calibrate
from tests.graph.test_activations import Residual
from tests.synthetic import random_activations, synthetic_layers

torch.manual_seed(0)
NETWORK, INPUTS = Residual().eval(), torch.randn(4, 3, 8, 8)
LAYERS = describe(NETWORK, INPUTS)


def test_a_residual_block_by_hand():
    """The stem's 256 elements are there until both branches have read them."""
    memory = peak_memory(LAYERS, find_activations(NETWORK, INPUTS))
    assert memory.reference == 512
    rng = np.random.default_rng(0)
    for bits in rng.integers(1, 9, (200, 5)):
        stem, first, second, shortcut, classifier = dict(
            zip([layer.name for layer in LAYERS], bits, strict=True)
        ).values()
        stored = 256 * max(first, shortcut) / 8
        steps = [
            192 * stem / 8 + stored,
            stored + 128 * second / 8 + 128,  # the second convolution's output is added: 8 bits
            stored + 128 + 128,
            128 + 128 + 128 * classifier / 8,
        ]
        assert memory.cost([8] * 5, bits) == max(steps)


def test_costs_are_the_bytes_that_the_simulated_network_stores():
    calibration = calibrate(NETWORK, INPUTS)
    activations = find_activations(NETWORK, INPUTS)
    tables = compile_costs(LAYERS, activations, load_device("generic"))
    energy = load_device("generic").energy
    readers = {"x": 1, "relu": 2, "relu_1": 1, "second": 1, "shortcut": 1, "relu_2": 1}
    for bits in np.random.default_rng(1).integers(1, 9, (50, 5, 2)):
        allocation = Allocation.make(LAYERS, bits[:, 0].tolist(), bits[:, 1].tolist())
        moved = sum(layer.params * weight / 8 for layer, weight in zip(LAYERS, bits[:, 0], strict=True))
        for site in calibration.sites:
            size = site.features * calibration.stored_bits(site, allocation) / 8
            moved += size * (readers[site.node] + (site.node != "x"))
        macs = sum(
            layer.macs * float(energy.mac_energy(np.sqrt(w * a))) for layer, (w, a) in zip(LAYERS, bits, strict=True)
        )
        found = tables["energy"].cost(bits[:, 0], bits[:, 1])
        assert found == pytest.approx(energy.joules_per_byte * moved + macs, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), data=st.data())
def test_the_peak_is_the_greatest_step_and_grows_with_the_bits(seed, count, data):
    layers = synthetic_layers(count, seed)
    activations = random_activations(layers, seed)
    memory = peak_memory(layers, activations)
    draw = st.lists(st.integers(1, 8), min_size=count, max_size=count)
    low = data.draw(draw)
    high = [max(pair) for pair in zip(low, data.draw(draw), strict=True)]
    costs = []
    for bits in (low, high):
        of = dict(zip([layer.name for layer in layers], bits, strict=True))
        steps = [
            sum(
                tensor.elements * max([of[name] for name in tensor.layers] + [8] * tensor.shared) / 8
                for tensor in activations.tensors
                if tensor.first <= step <= tensor.last
            )
            for step in range(len(activations.tensors) + 1)
        ]
        pairs = np.array([[8, each] for each in bits])
        assert memory.cost([8] * count, bits) == max(steps)
        assert memory.rows.cost_of(pairs).max() == max(steps)
        costs.append(max(steps))
    assert costs[0] <= costs[1]
    many = np.array([[[1, a] for a in bits] for bits in itertools.islice(itertools.product((1, 8), repeat=count), 8)])
    np.testing.assert_array_equal(memory.costs(many), [memory.costs(each) for each in many])
    np.testing.assert_array_equal(memory.costs(many[[0, 0]]), [memory.costs(many[0])] * 2)
