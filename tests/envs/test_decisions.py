from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.envs.decisions import make_walk
from tests.synthetic import synthetic_layers


def device(weights=range(1, 9), activations=range(1, 9)):
    supports = np.zeros((8, 8), dtype=bool)
    supports[np.ix_(np.array(list(weights)) - 1, np.array(list(activations)) - 1)] = True
    return SimpleNamespace(
        name="stub", weight_bits=tuple(weights), activation_bits=tuple(activations), supports=supports
    )


def walk(mode="weights", bits=(2, 4, 8), activation_bits=8, pinned=None, count=3, on=None):
    return make_walk(mode, bits, activation_bits, pinned, synthetic_layers(count), on or device())


def test_decisions_of_each_mode():
    assert walk("weights").groups.tolist() == [0, 1, 2]
    alternating = walk("weights+activations")
    assert alternating.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert alternating.kinds == ("weights", "activations") * 3
    assert walk("joint").n_decisions == 3
    assert walk("joint").n_actions == 9


def test_options_are_sorted_and_joint_index_is_weight_major():
    joint = walk("joint", bits=(8, 2, 4))
    assert joint.bits == (2, 4, 8)
    for weight in range(3):
        for activation in range(3):
            expected = (joint.bits[weight], joint.bits[activation])
            assert tuple(joint.options[weight * 3 + activation]) == expected


def test_pinned_layers_are_no_decisions_and_start_settled():
    pinned = walk("weights", pinned="first_last", count=4, activation_bits=6)
    assert pinned.groups.tolist() == [1, 2]
    assert pinned.start.tolist() == [[8, 8], [0, 6], [0, 6], [8, 8]]
    assert np.argwhere(pinned.allowed[0]).tolist() == [[7, 7]]
    assert np.argwhere(pinned.allowed[1]).tolist() == [[1, 5], [3, 5], [7, 5]]


def test_pins_by_name_need_not_be_among_the_options():
    pinned = walk("joint", pinned={"layer1": 5, "layer2": (3, 7)})
    assert pinned.groups.tolist() == [0]
    assert pinned.start.tolist() == [[0, 0], [5, 5], [3, 7]]


def test_a_network_of_one_pinned_layer_twice_over_is_refused():
    with pytest.raises(QuantenvError, match="nothing to decide"):
        walk(pinned="first_last", count=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "weigths"}, "Did you mean 'weights'"),
        ({"bits": ()}, "at least one"),
        ({"bits": (2, 2, 4)}, "each of them once"),
        ({"bits": (0, 2)}, "from 1 to 8"),
        ({"bits": (2, 9)}, "from 1 to 8"),
        ({"bits": (2, -1)}, "from 1 to 8"),
        ({"bits": (2.5, 4)}, "whole numbers"),
        ({"activation_bits": 9}, "activation_bits holds 9"),
        ({"mode": "joint", "activation_bits": 4}, "activation_bits=4"),
        ({"pinned": {"layer9": 8}}, "Unknown pinned layer 'layer9'"),
        ({"pinned": {"layer0": 0}}, "from 1 to 8"),
        ({"pinned": {"layer0": (8, 8, 8)}}, "expected one bit-width"),
        ({"pinned": "last"}, "expected None, 'first_last' or a mapping"),
        ({"on": device(weights=(4,)), "pinned": "first_last"}, "pinned at 8/8"),
        ({"on": device(activations=(4,))}, "activation_bits=8"),
        ({"on": device(weights=(3, 5))}, "supports weight bits 3, 5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(QuantenvError, match=message):
        walk(**arguments)


@settings(deadline=None)
@given(
    bits=st.sets(st.integers(1, 8), min_size=1),
    mode=st.sampled_from(["weights", "joint"]),
    data=st.data(),
)
def test_nearest_is_the_nearest_open_option_with_ties_towards_fewer_bits(bits, mode, data):
    made = walk(mode, bits=tuple(bits))
    action = data.draw(st.integers(0, made.n_actions - 1))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=made.n_actions, max_size=made.n_actions)))
    mask[data.draw(st.integers(0, made.n_actions - 1))] = True
    pairs = [tuple(int(bit) for bit in pair) for pair in made.options]

    def rank(option):
        (weight, activation), (wanted_weight, wanted_activation) = pairs[option], pairs[action]
        distance = abs(weight - wanted_weight) + abs(activation - wanted_activation)
        return distance, weight + activation, weight

    assert made.nearest(action, mask) == min(np.flatnonzero(mask), key=rank)


@settings(deadline=None)
@given(
    mode=st.sampled_from(["weights", "weights+activations", "joint"]),
    pinned=st.sampled_from([None, "first_last"]),
    seed=st.integers(0, 100),
)
def test_actions_are_the_inverse_of_settling(mode, pinned, seed):
    made = walk(mode, bits=(2, 3, 6, 8), pinned=pinned, count=4)
    actions = np.random.default_rng(seed).integers(0, made.n_actions, made.n_decisions)
    bits = made.start.copy()
    finished = [made.settle(bits, decision, int(action)) for decision, action in enumerate(actions)]
    assert sum(finished) == len(set(made.groups.tolist()))
    assert bits.min() >= 2
    assert made.actions(bits).tolist() == actions.tolist()
