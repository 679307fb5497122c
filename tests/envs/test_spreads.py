"""Hierarchical decisions over channel groups, and plain ones, on small networks whose allocations can all be listed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import make_agent
from quantenv.core.allocation import Allocation
from quantenv.core.channel_groups import split_layers
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.envs.decisions import make_walk
from quantenv.envs.masks import Masks, within
from quantenv.envs.observations import describe_groups
from quantenv.envs.spreads import FIRST, SPREADS, spread_bits, spreads_of
from quantenv.hardware import load_device
from quantenv.hardware.rows import CostRows
from tests.envs.synthetic_env import highest, make_env, play
from tests.envs.test_decisions import device
from tests.envs.test_environment import check_both
from tests.envs.test_masks import reachable
from tests.synthetic import chain_costs, synthetic_layers


def rows(counts=(4, 1, 3, 2)):
    """Layers cut into so many groups each."""
    layers = synthetic_layers(len(counts))
    channels = {
        layer.name: [part.tolist() for part in np.array_split(np.arange(layer.out_channels), count)]
        for layer, count in zip(layers, counts, strict=True)
        if count > 1
    }
    return split_layers(layers, channels)


def spread_of(bits, spread, groups, choices=range(2, 9)):
    choices = tuple(choices)
    return spread_bits(choices, [spread], groups)[:, choices.index(bits), 0].tolist()


def test_spreads_by_name():
    assert spread_of(4, "flat", 4) == [4, 4, 4, 4]
    assert spread_of(4, "first up", 4) == [5, 4, 4, 4]
    assert spread_of(4, "ends apart", 4) == [5, 4, 4, 3]
    assert spread_of(4, "halves apart", 5) == [5, 5, 4, 3, 3]
    assert spread_of(4, "half down", 3) == [4, 4, 3]
    assert spread_of(4, "half up", 2) == [5, 4]
    assert spread_of(4, "last down", 2, (2, 4, 8)) == [4, 2]  # the next option
    assert spread_of(8, "halves apart", 4) == [8, 8, 7, 7]  # and none beyond the last


@given(groups=st.integers(2, 9), choices=st.sets(st.integers(1, 8), min_size=1), count=st.integers(1, 9))
def test_spreads_never_give_less_sensitive_groups_more_bits(groups, choices, count):
    names = spreads_of(count)
    assert len(names) == min(count, len(SPREADS))
    assert "flat" in names
    bits = spread_bits(sorted(choices), names, groups)
    assert bits.shape == (groups, len(choices), len(names))
    assert (np.diff(bits, axis=0) <= 0).all()
    assert set(bits.ravel().tolist()) <= choices
    assert (bits[:, :, names.index("flat")] == sorted(choices)).all()


@pytest.mark.parametrize("groups", [2, 3, 4, 7])
def test_spreads_go_from_the_fewest_bits_to_the_most(groups):
    totals = spread_bits(range(1, 9), tuple(SPREADS), groups)[:, 1:-1].sum(axis=0)  # where no bits leave the options
    assert (np.diff(totals, axis=1) >= 0).all()


def test_all_spreads_are_taken_in():
    assert sorted(FIRST) == sorted(SPREADS)


def test_a_layer_takes_two_decisions_whatever_its_groups():
    for counts in ((2, 1, 2, 2), (4, 1, 4, 4)):
        env = make_env(rows(counts), decisions="hierarchical", budget=0.6)
        assert env.walk.kinds == ("weights", "activations", "weights", *("weights", "activations") * 2)
        assert env.action_space.n == 7
        naive = make_env(rows(counts), budget=0.6)
        assert naive.n_decisions == sum(counts)


def test_an_episode_s_bits_are_centres_spread_over_groups():
    env = make_env(rows(), decisions="hierarchical", budget=1.0, activation_bits=4)
    names = spreads_of(7)
    actions = [
        *(2, names.index("ends apart")),
        3,
        *(0, names.index("half down")),
        *(6, names.index("first up")),
    ]
    *_, [*_, end] = play(env, actions)
    assert end["bits"][:, 0].tolist() == [5, 4, 4, 3, 5, 2, 2, 2, 8, 8]
    assert set(end["bits"][:, 1].tolist()) == {4}
    assert end["executed_actions"].tolist() == actions
    for metric, table in env.tables.items():
        assert end[f"cost_{metric}"] == pytest.approx(table.cost(*end["bits"].T), rel=1e-12)
    allocation = Allocation.make(env.layers, *end["bits"].T.tolist())
    assert env.evaluator.evaluate([allocation])[0].accuracy == end["accuracy"]


def brute_force(walk, tables, limits, choices):
    """States of the walk's groups that meet the budgets, by the spreads' own definition and the layers' tables."""
    names = spreads_of(len(choices))
    states = []
    for group, members in enumerate(walk.members):
        if walk.start[group].all():
            weight = int(walk.start[group, 0])
            states.append([((weight, int(walk.start[group, 1])), [weight] * len(members))])
            continue
        pairs = itertools.product(choices, zip(choices, names, strict=False))
        if len(members) == 1:
            flat = choices[names.index("flat")]
            states.append([((centre, flat), [centre]) for centre in choices])
        else:
            states.append(
                [((centre, label), spread_of(centre, name, len(members), choices)) for centre, (label, name) in pairs]
            )
    found = set()
    for combination in itertools.product(*states):
        bits = dict(zip(itertools.chain(*walk.members), itertools.chain(*(b for _, b in combination)), strict=True))
        costs = [sum(t[i, bits[i] - 1, walk.activations[i] - 1] for i in sorted(bits)) for t in tables]
        if within(np.array(costs), limits):
            found.add(tuple(state for state, _ in combination))
    return found


@settings(max_examples=30, deadline=None)
@given(
    choices=st.sampled_from([(2, 3, 5), (4, 8), (2, 3, 4, 8)]),
    metrics=st.sampled_from([("size",), ("latency",), ("size", "latency")]),
    share=st.floats(0.01, 1),
    pinned=st.sampled_from([None, {"layer0": 8}, "first_last"]),
)
def test_exactly_the_feasible_allocations_are_reachable(choices, metrics, share, pinned):
    layers = rows((3, 1, 2))
    costs = chain_costs(layers, load_device("generic"))
    tables = np.stack([costs[metric].values for metric in metrics])
    walk = make_walk("hierarchical", choices, 8, pinned, layers, device())
    by_state = np.stack([walk.group_costs(table) for table in tables])
    least = np.where(walk.allowed, by_state, np.inf).min(axis=(2, 3)).sum(axis=1)
    most = np.where(walk.allowed, by_state, 0).max(axis=(2, 3)).sum(axis=1)
    limits = least + share * (most - least)
    found = reachable(walk, Masks(walk, CostRows(by_state), limits), CostRows(by_state))
    assert found == brute_force(walk, tables, limits, choices)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.26, 0.9), seed=st.integers(0, 99))
def test_plain_decisions_about_groups_keep_the_budget(share, seed):
    rng = np.random.default_rng(seed)
    for mode in ("weights", "hierarchical"):
        env = make_env(rows(), decisions=mode, budget=share)
        actions = rng.integers(7, size=env.n_decisions)
        *_, [*_, end] = play(env, actions.tolist())
        assert end["feasible"] == 1
        assert (np.array(play(env, end["executed_actions"].tolist())[2][-1]["bits"]) == end["bits"]).all()


@pytest.mark.parametrize("mode", ["weights", "hierarchical"])
@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
def test_both_checkers_pass(mode, constraint):
    check_both(make_env(rows(), decisions=mode, constraint=constraint, budget=0.6))


def test_projection_lowers_spreads_and_centres():
    env = make_env(rows(), decisions="hierarchical", constraint="project", budget=0.5)
    *_, [*_, end] = play(env, [6] * env.n_decisions)
    assert end["feasible"] == 1
    assert end["cost_size"] > 0.8 * end["budget_size"]
    weights = end["bits"][:4, 0]
    assert (np.diff(weights) <= 0).all()


def test_the_budget_s_least_allocation_is_the_lowest_option_everywhere():
    *_, [*_, end] = play(make_env(rows(), decisions="hierarchical", budget=0.2501), highest)
    assert set(end["bits"][:, 0].tolist()) == {2}
    with pytest.raises(InfeasibleBudgetError):
        make_env(rows(), decisions="hierarchical", budget=0.24)


def test_pins_hold_whole_layers():
    env = make_env(rows(), decisions="hierarchical", pinned={"layer0": (8, 4), "layer1": 3}, budget=0.9)
    *_, [*_, end] = play(env, highest)
    assert end["bits"][:5].tolist() == [[8, 4]] * 4 + [[3, 3]]
    assert env.n_decisions == 4
    naive = make_env(rows(), pinned="first_last", budget=0.9)
    assert naive.decision_layers.tolist() == [4, 5, 6, 7]


def test_uniform_bits_of_layers_are_allowed_wherever_bits_are():
    env = make_env(rows(), decisions="hierarchical", budget=0.9, activation_bits=4)
    expected = np.zeros((10, 8, 8), dtype=bool)
    expected[:, 1:, 3] = True
    assert (env.allowed == expected).all()


def test_observations_describe_whole_layers_and_copies_agree():
    env = make_env(rows(), decisions="hierarchical", budget=0.6)
    assert describe_groups(env.layers, env.walk) == synthetic_layers(4)
    copies = env.vectorize(3)
    copies.reset(seed=0)
    for _ in range(env.n_decisions):
        *_, infos = copies.step(np.array([0, 3, 6]))
    for index, action in enumerate((0, 3, 6)):
        *_, [*_, end] = play(env, [action] * env.n_decisions)
        assert (infos["final_info"]["bits"][index] == end["bits"]).all()
        assert infos["final_info"]["accuracy"][index] == end["accuracy"]
    assert "layer0#3" in make_env(rows(), decisions="hierarchical", budget=0.6, render_mode="ansi").render()


@pytest.mark.parametrize("agent", ["random", "uniform", "reinforce", "nsga2"])
@pytest.mark.parametrize("mode", ["weights", "hierarchical"])
def test_agents_search_both_ways(agent, mode):
    env = make_env(rows(), decisions=mode, budget=0.5)
    made = make_agent(agent, env, 0)
    made.learn(6, lambda metrics: None)
    assert env.evaluations <= 6


@pytest.mark.parametrize("budget", [0.35, 0.5])
def test_the_exact_solver_finds_the_best_spreads_of_the_additive_proxy(budget):
    env = make_env(rows((3, 1, 2)), decisions="hierarchical", budget=budget, bits=(2, 3, 5, 8), constraint="reject")
    harm, cost, best = env.evaluator.sensitivity, env.tables["size"].values[:, :, 7], {}
    for actions in itertools.product(range(4), repeat=env.n_decisions):
        bits = play(env, list(actions))[-1][-1]["bits"][:, 0]  # of channel groups
        if cost[np.arange(len(bits)), bits - 1].sum() <= env.limits[0]:
            best[tuple(bits)] = (harm * 4.0 ** (3 - bits)).sum()
    solver = make_agent("ilp", env, 0)
    solver.learn(1, lambda metrics: None)
    bits = play(env, solver.best.actions)[-1][-1]["bits"][:, 0]
    assert best[tuple(bits)] == pytest.approx(min(best.values()))


@pytest.mark.parametrize("agent", ["annealing", "greedy-down", "greedy-up", "ilp-top", "surrogate"])
def test_agents_on_the_additive_proxy_spread_bits(agent):
    env = make_env(rows(), decisions="hierarchical", budget=0.5)
    made = make_agent(agent, env, 0)
    made.learn(6, lambda metrics: None)
    assert made.best.feasible


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"decisions": "joint"}, r"'layer0' read the same activations.*'weights' or 'hierarchical'"),
        ({"decisions": "weights+activations"}, r"tie them \(tied=\[\['layer0'\], ...\]\)"),
        ({"pinned": {"layer0#1": (8, 4)}}, r"'layer0' would have different activation bits by their pins"),
        ({"decisions": "hierarchical", "pinned": {"layer0#1": 8}}, r"pinned at different bits"),
        ({"decisions": "hierarchical", "tied": [["layer0", "layer1"]]}, r"nothing else can be tied"),
        ({"decisions": "hierarchical", "pinned": {"layr0": 8}}, r"Unknown pinned layer 'layr0'"),
    ],
)
def test_what_would_split_a_layer_s_activations_is_refused(arguments, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        make_env(rows(), budget=0.6, **arguments)


def test_hierarchical_decisions_need_groups():
    with pytest.raises(QuantenvError, match=r"no layer has any.*--channel_groups"):
        make_env(4, decisions="hierarchical")


def test_tied_groups_take_activation_decisions():
    env = make_env(rows(), decisions="joint", tied=[["layer0"], ["layer2"], ["layer3"]], budget=0.9)
    assert env.n_decisions == 4
    *_, [*_, end] = play(env, [8, 9, 10, 11])
    assert end["bits"].tolist() == [[3, 3]] * 4 + [[3, 4]] + [[3, 5]] * 3 + [[3, 6]] * 2
