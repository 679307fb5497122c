import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import InfeasibleBudgetError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.masks import within
from tests.synthetic import GraphEvaluator, synthetic_layers

METRICS = ("size", "bops", "latency", "energy", "memory")
MODES = ("weights", "weights+activations", "joint")


def make(seed, mode, budgets, count=3, bits=(2, 5, 8), **options):
    evaluator = GraphEvaluator(synthetic_layers(count, seed), seed)
    device = options.pop("device", "generic")
    return QuantizationEnv(
        evaluator=evaluator,
        sensitivity=evaluator.sensitivity,
        device=device,
        decisions=mode,
        bits=bits,
        budget=budgets,
        **options,
    )


def stored_bytes(activations, bits):
    """Bytes of each tensor, from the description alone."""
    found = []
    for tensor in activations.tensors:
        wanted = [bits[name][1] for name in tensor.layers] + [8] * tensor.shared
        found.append(tensor.elements * max(wanted) / 8)
    return found


def costs_by_hand(env, bits):
    """Energy and memory of one allocation, tensor by tensor and layer by layer."""
    activations, energy = env.activations, env.device.energy
    bits = dict(zip([layer.name for layer in env.layers], bits, strict=True))
    stored = stored_bytes(activations, bits)
    moved = sum(
        size * (tensor.written + tensor.reads / tensor.elements)
        for size, tensor in zip(stored, activations.tensors, strict=True)
    )
    moved += sum(layer.params * bits[layer.name][0] / 8 for layer in env.layers)
    joules = energy.joules_per_byte * moved
    for layer in env.layers:
        joules += layer.macs * float(energy.mac_energy(np.sqrt(np.prod(bits[layer.name]))))
    joules += activations.macs * float(energy.mac_energy(np.array(8.0)))
    peak = max(
        sum(
            size
            for size, tensor in zip(stored, activations.tensors, strict=True)
            if tensor.first <= step <= tensor.last
        )
        for step in range(len(stored) + 1)
    )
    return {"energy": joules, "memory": peak}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), bits=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=4, max_size=4)
)
def test_tables_and_terms_add_up_to_what_is_stored(seed, bits):
    env = make(seed, "joint", 1.0, count=4)
    by_hand = costs_by_hand(env, bits)
    for metric, cost in by_hand.items():
        assert env.tables[metric].cost(*zip(*bits, strict=True)) == pytest.approx(cost, rel=1e-12)
    together = env.network_costs.of(np.array(bits))
    apart = [table.cost(*zip(*bits, strict=True)) for table in env.tables.values()]
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    many = env.network_costs.of(np.array([bits, bits[::-1], bits]))
    np.testing.assert_allclose(many[:, 0], together, rtol=1e-12)
    np.testing.assert_allclose(many[:, 1], env.network_costs.of(np.array(bits[::-1])), rtol=1e-12)


def all_allocations(env):
    pairs = [[tuple((pair + 1).tolist()) for pair in np.argwhere(allowed)] for allowed in env.allowed]
    return list(itertools.product(*pairs))


def feasible(env):
    """Every allowed allocation within the budgets, by the costs of whole allocations."""
    found = set()
    for bits in all_allocations(env):
        costs = env.network_costs.of(np.array(bits))
        if within(costs[env.budgeted], env.limits):
            found.add(bits)
    return found


def reached(env):
    """Every allocation that open options lead to."""
    found = set()

    def descend(prefix):
        env.reset()
        info = {"action_mask": env.action_masks()}
        for action in prefix:
            *_, info = env.step(action)
        if len(prefix) == env.n_decisions:
            assert info["feasible"] == 1
            found.add(tuple(map(tuple, info["bits"].tolist())))
            return
        open_ = np.flatnonzero(info["action_mask"]).tolist()
        assert open_
        for action in open_:
            descend([*prefix, action])

    descend([])
    return found


budgets = st.dictionaries(st.sampled_from(METRICS), st.floats(0.2, 1.0), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(MODES),
    budgets=budgets,
    pinned=st.sampled_from([None, {"layer1": 8}, {"layer1": (2, 8)}]),
    tied=st.sampled_from([None, [["layer0", "layer2"]]]),
)
def test_masks_let_exactly_the_feasible_allocations_through(seed, mode, budgets, pinned, tied):
    try:
        env = make(seed, mode, budgets, pinned=pinned, tied=tied, bits=(2, 5, 8) if mode == "weights" else (2, 8))
    except InfeasibleBudgetError:
        loose = make(seed, mode, dict.fromkeys(budgets, 1.0), pinned=pinned, tied=tied, bits=(2, 8))
        limits = np.array([ratio * loose.tables[metric].reference for metric, ratio in budgets.items()])
        for bits in all_allocations(loose):
            assert not within(loose.network_costs.of(np.array(bits))[loose.budgeted], limits)
        return
    expected = feasible(env)
    if tied is not None:
        expected = {bits for bits in expected if bits[0] == bits[2]}
    assert reached(env) == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(MODES), budgets=budgets, data=st.data())
def test_projected_allocations_meet_budgets_on_what_several_layers_read(seed, mode, budgets, data):
    try:
        env = make(seed, mode, budgets, count=5, constraint="project")
    except InfeasibleBudgetError:
        return
    env.reset()
    for _ in range(env.n_decisions):
        observation, _, _, _, info = env.step(data.draw(st.integers(0, env.action_space.n - 1)))
        assert env.observation_space.contains(observation)
    assert info["feasible"] == 1
    for budget in env.budgets:
        by_hand = env.tables[budget.metric].cost(*info["bits"].T)
        assert info[f"cost_{budget.metric}"] == pytest.approx(by_hand)


@pytest.mark.parametrize("mode", ["weights+activations", "joint"])
@pytest.mark.parametrize("seed", [0, 1, 3, 6])
def test_what_is_left_and_reducible_is_that_of_completions(mode, seed):
    """By brute force: the cheapest and dearest completion of each half-made allocation."""
    env = make(seed, mode, {"memory": 0.9, "energy": 0.95}, bits=(2, 8))
    everything = all_allocations(env)
    costs = dict(zip(everything, env.network_costs.of(np.array(everything)).T, strict=True))
    rng = np.random.default_rng(seed)
    observation, _ = env.reset()
    first = {}
    for decision in range(env.n_decisions):
        settled = {layer: tuple(pair) for layer, pair in enumerate(env.walk.per_layer(env._bits).tolist())}
        left = [
            cost
            for bits, cost in costs.items()
            if all(b in (0, bits[layer][k]) for layer, pair in settled.items() for k, b in enumerate(pair))
        ]
        for index, budget in zip(env.budgeted, env.budgets, strict=True):
            least = min(cost[index] for cost in left)
            value = budget.limit - least
            first.setdefault(budget.metric, value)
            shown = observation[env.feature_names.index(f"budget_left_{budget.metric}")]
            assert shown == pytest.approx(np.clip(value / first[budget.metric], 0, 1), abs=1e-5)
            reducible = observation[env.feature_names.index(f"reducible_{budget.metric}")]
            assert 0 <= reducible <= 1
            if decision == 0:
                assert reducible == pytest.approx(1.0)
        open_ = np.flatnonzero(env.action_masks())
        observation, *_ = env.step(int(rng.choice(open_)))


def test_where_activations_are_not_decided_no_terms_are_left_and_memory_is_one_sum():
    for seed in range(20):
        env = make(seed, "weights", {"memory": 1.0, "latency": 1.0}, count=6)
        assert not env.episode_costs.rows.terms
        assert len(env.episode_costs.places["memory"]) == 1
        assert "memory" not in make(seed, "weights", {"size": 0.5}).episode_costs.places


def test_vectorised_copies_agree_with_one_on_costs():
    from tests.synthetic_table import synthetic_table

    layers = synthetic_layers(4, 3)
    table = synthetic_table(activations=GraphEvaluator(layers, 7).activations, seed=3)
    single = QuantizationEnv(table, metric=["size", "memory", "latency"], budget=[0.6, 1.0, 0.9])
    copies = single.vectorize(3)
    copies.reset(seed=0)
    rng = np.random.default_rng(0)
    taken = rng.integers(0, single.action_space.n, (single.n_decisions, 3))
    for actions in taken:
        *_, infos = copies.step(actions)
    for copy in range(3):
        single.reset()
        for action in taken[:, copy].tolist():
            *_, info = single.step(action)
        for metric in METRICS:
            assert infos["final_info"][f"cost_{metric}"][copy] == info[f"cost_{metric}"]
