import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.envs.decisions import make_walk
from quantenv.envs.masks import Masks, cheapest_bits, within
from quantenv.hardware.rows import CostRows
from tests.envs.test_decisions import device
from tests.synthetic import synthetic_layers

#: Costs without terms have reached none.
NOTHING = np.zeros(0, dtype=np.int64)
MODES = ("weights", "weights+activations", "joint")


def reachable(walk, masks, costs):
    """Every allocation that open options lead to, by walking all of them."""
    found = set()

    def descend(decision, bits, spent):
        if decision == walk.n_decisions:
            found.add(tuple(map(tuple, bits.tolist())))
            return
        layer = walk.groups[decision]
        settled = int(bits[layer, 0]) if walk.kinds[decision] == "activations" else 0
        options = np.flatnonzero(masks.open(decision, settled, spent, NOTHING))
        assert len(options) > 0
        for option in options:
            after = bits.copy()
            done = walk.settle(after, decision, int(option))
            weight, activation = after[layer] - 1
            descend(decision + 1, after, spent + costs.values[:, layer, weight, activation] if done else spent)

    pinned = np.flatnonzero((walk.start > 0).all(axis=1))
    weight, activation = walk.start[pinned].T - 1
    descend(0, walk.start.copy(), costs.values[:, pinned, weight, activation].sum(axis=1))
    return found


def feasible(walk, costs, limits):
    """Every allowed allocation within the budgets, by brute force."""
    pairs = [[tuple((pair + 1).tolist()) for pair in np.argwhere(allowed)] for allowed in walk.allowed]
    return {bits for bits in itertools.product(*pairs) if within(costs.cost_of(np.array(bits)), limits)}


def case(mode, metrics, seed, share, pinned, monotone, count=3):
    """A walk over random costs, with budgets between the cheapest and the dearest allocation."""
    rng = np.random.default_rng(seed)
    on = device(weights=(2, 3, 5, 8), activations=(3, 5, 8))
    walk = make_walk(mode, (2, 3, 5), 8, pinned, synthetic_layers(count), on)
    costs = rng.uniform(0.1, 1, (metrics, count, 8, 8)) * rng.choice([0.1, 1, 30], (1, count, 1, 1))
    if monotone:
        costs = costs.cumsum(axis=2).cumsum(axis=3)
    least = np.where(walk.allowed, costs, np.inf).min(axis=(2, 3)).sum(axis=1)
    most = np.where(walk.allowed, costs, 0).max(axis=(2, 3)).sum(axis=1)
    return walk, CostRows(costs), least + share * (most - least)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    metrics=st.integers(1, 2),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    pinned=st.sampled_from([None, {"layer1": 8}, {"layer0": (3, 8)}]),
)
def test_exactly_the_feasible_allocations_are_reachable(mode, metrics, seed, share, pinned):
    walk, costs, limits = case(mode, metrics, seed, share, pinned, monotone=True)
    assert reachable(walk, Masks(walk, costs, limits), costs) == feasible(walk, costs, limits)


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(MODES), seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_one_metric_is_exact_even_where_costs_do_not_grow_with_bits(mode, seed, share):
    walk, costs, limits = case(mode, 1, seed, share, None, monotone=False)
    assert reachable(walk, Masks(walk, costs, limits), costs) == feasible(walk, costs, limits)


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(MODES), seed=st.integers(0, 10_000), share=st.floats(0.2, 1))
def test_metrics_that_disagree_never_lead_into_a_dead_end(mode, seed, share):
    walk, costs, limits = case(mode, 2, seed, share, None, monotone=False)
    limits = np.maximum(limits, costs.cost_of(cheapest_bits(walk.allowed, costs.values, limits)))
    if not within(costs.cost_of(cheapest_bits(walk.allowed, costs.values, limits)), limits):
        return  # raising the limits changed what is cheapest
    found = reachable(walk, Masks(walk, costs, limits), costs)
    assert found
    assert found <= feasible(walk, costs, limits)


@pytest.mark.parametrize("mode", MODES)
def test_without_budgets_only_the_device_closes_options(mode):
    on = device(weights=(2, 3, 5), activations=(3, 5, 8))
    walk = make_walk(mode, (2, 3, 4, 5), 8, None, synthetic_layers(2), on)
    masks = Masks(walk, CostRows(np.empty((0, 2, 8, 8))), np.empty(0))
    spent = np.empty(0)
    weights, activations = [True, True, False, True], [False, True, False, True]
    if mode == "joint":
        assert masks.open(0, 0, spent, NOTHING).reshape(4, 4).tolist() == np.outer(weights, activations).tolist()
    else:
        assert masks.open(0, 0, spent, NOTHING).tolist() == weights
    if mode == "weights+activations":
        assert masks.open(1, 3, spent, NOTHING).tolist() == activations


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_a_budget_equal_to_the_cheapest_allocation_is_feasible_whatever_the_order_of_sums(seed, count):
    rng = np.random.default_rng(seed)
    walk = make_walk("weights", (2, 4), 8, None, synthetic_layers(count), device())
    costs = rng.uniform(0.1, 1, (1, count, 8, 8)).cumsum(axis=2)
    limits = np.array([sum(reversed(costs[0, :, 1, 7].tolist()))])
    masks = Masks(walk, CostRows(costs), limits)
    spent = np.zeros(1)
    for decision in range(count):
        assert masks.open(decision, 0, spent, NOTHING).tolist() == [True, False]
        spent = spent + costs[:, decision, 1, 7]
    assert within(spent, limits)
