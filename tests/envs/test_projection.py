import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.envs.decisions import make_walk
from quantenv.envs.masks import within
from quantenv.envs.projection import project
from quantenv.hardware.rows import CostRows
from tests.envs.test_decisions import device
from tests.envs.test_masks import MODES, case
from tests.synthetic import synthetic_layers


def flat_costs(count):
    """A cost of one for each bit of weights and of activations."""
    bits = np.arange(1, 9)
    return CostRows(np.broadcast_to(1.0 * (bits[:, None] + bits), (1, count, 8, 8)))


@pytest.mark.parametrize(
    ("mode", "limit", "expected"),
    [
        ("weights", 47, [[8, 8], [8, 8], [7, 8]]),
        ("weights", 44, [[7, 8], [7, 8], [5, 8]]),  # a gap in the options is one step: 7 -> 5
        ("weights", 40, [[5, 8], [5, 8], [5, 8]]),
        ("weights+activations", 47, [[8, 8], [8, 8], [8, 7]]),  # as HAQ: activations before weights
        ("weights+activations", 46, [[8, 8], [8, 8], [7, 7]]),
        ("weights+activations", 45, [[8, 8], [8, 7], [7, 7]]),
        ("joint", 45, [[8, 8], [8, 7], [7, 7]]),
    ],
)
def test_layers_give_way_from_last_to_first_one_option_at_a_time(mode, limit, expected):
    walk = make_walk(mode, (2, 4, 5, 7, 8), 8, None, synthetic_layers(3), device())
    bits = np.full((3, 2), 8)
    assert project(bits, walk, flat_costs(3), np.array([limit])).tolist() == expected
    assert (bits == 8).all()


def test_what_fits_is_left_alone():
    walk = make_walk("joint", (2, 8), 8, None, synthetic_layers(3), device())
    bits = np.array([[8, 2], [2, 8], [2, 2]])
    assert project(bits, walk, flat_costs(3), np.array([24])).tolist() == bits.tolist()


def test_pinned_layers_hold_and_nothing_falls_below_the_lowest_option():
    walk = make_walk("weights+activations", (3, 8), 8, "first_last", synthetic_layers(4), device())
    projected = project(np.full((4, 2), 8), walk, flat_costs(4), np.array([32 + 12]))
    assert projected.tolist() == [[8, 8], [3, 3], [3, 3], [8, 8]]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    monotone=st.booleans(),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    pinned=st.sampled_from([None, {"layer1": 8}]),
)
def test_every_projected_allocation_is_allowed_and_feasible(mode, monotone, seed, share, pinned):
    walk, costs, limits = case(mode, 1, seed, share, pinned, monotone)
    rng = np.random.default_rng(seed)
    bits = np.array([rng.choice(np.argwhere(allowed)) + 1 for allowed in walk.allowed])
    projected = project(bits, walk, costs, limits)
    weight, activation = projected.T - 1
    assert walk.allowed[np.arange(len(bits)), weight, activation].all()
    assert within(costs.cost_of(projected), limits)
    if monotone:
        assert (projected <= bits).all()
