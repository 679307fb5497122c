"""Tied layers: an environment over groups is one over layers in which the tied ones always agree."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.envs.observations import describe_groups, sensitivity_feature
from tests.envs.synthetic_env import highest, make_env, play, same
from tests.envs.test_environment import check_both, device

MODES = ("weights", "weights+activations", "joint")
TIED = [["layer4", "layer1"], ["layer2", "layer5"]]
MEMBERS = ((0,), (1, 4), (2, 5), (3,))


def test_groups_are_decided_at_once_at_their_first_layer():
    env = make_env(tied=TIED, budget=0.9)
    assert env.n_decisions == 4
    assert env.walk.members == MEMBERS
    assert env.decision_layers.tolist() == [0, 1, 2, 3]
    *_, [*_, end] = play(env, [0, 3, 5, 1])
    assert end["bits"][:, 0].tolist() == [2, 5, 7, 3, 5, 7]
    assert end["executed_actions"].tolist() == [0, 3, 5, 1]
    assert env.allowed.shape == (6, 8, 8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
def test_tying_nothing_changes_nothing(mode, constraint):
    arguments = {"decisions": mode, "constraint": constraint, "budget": 0.5}
    plain, tied = make_env(**arguments), make_env(**arguments, tied=[["layer3"], ["layer0"]])
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.integers(plain.action_space.n, size=plain.n_decisions).tolist()
        assert same(play(plain, actions), play(tied, actions))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
def test_both_checkers_pass(mode, constraint):
    check_both(make_env(tied=TIED, decisions=mode, constraint=constraint, budget=0.6))


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    constraint=st.sampled_from(["mask", "project", "reject"]),
    budget=st.floats(0.3, 1.0),
    pinned=st.sampled_from([None, {"layer0": 8}, {"layer1": (8, 4), "layer4": (8, 4)}]),
    seed=st.integers(0, 1000),
)
def test_what_is_evaluated_is_the_same_allocation_in_an_untied_environment(mode, constraint, budget, pinned, seed):
    bits = (2, 4, 8)
    arguments = {"decisions": mode, "bits": bits, "pinned": pinned, "budget": {"size": budget, "latency": 0.95}}
    try:
        tied = make_env(tied=TIED, constraint=constraint, **arguments)
    except InfeasibleBudgetError:
        return
    rng = np.random.default_rng(seed)
    *_, [*_, end] = play(tied, lambda mask: int(rng.integers(len(mask))))
    assert (end["bits"][1] == end["bits"][4]).all()
    assert (end["bits"][2] == end["bits"][5]).all()
    if constraint != "reject":
        assert end["feasible"] == 1
    untied = make_env(constraint="reject", **arguments)
    *_, [*_, again] = play(untied, untied.walk.actions(end["bits"]).tolist())
    assert (again["bits"] == end["bits"]).all()
    for key in ("accuracy", "loss", "feasible", *(key for key in end if key.startswith("cost_"))):
        assert again[key] == end[key], key


@pytest.mark.parametrize("mode", ["weights", "joint"])
def test_under_mask_exactly_the_feasible_tied_allocations_are_reached(mode):
    bits = (2, 4, 8)
    env = make_env(4, tied=[["layer0", "layer2"]], bits=bits, decisions=mode, budget={"size": 0.5, "latency": 0.7})
    found = set()

    def descend(prefix):
        _, info = env.reset()
        for action in prefix:
            _, _, _, _, info = env.step(action)
        if len(prefix) == env.n_decisions:
            found.add(tuple(map(tuple, info["bits"].tolist())))
            return
        for action in np.flatnonzero(info["action_mask"]).tolist():
            descend([*prefix, action])

    descend([])
    expected = set()
    pairs = [(w, a) for w in bits for a in (bits if mode == "joint" else (8,))]
    for first, second, last in itertools.product(pairs, repeat=3):
        allocation = (first, second, first, last)
        costs = {
            name: sum(env.tables[name].values[i, w - 1, a - 1] for i, (w, a) in enumerate(allocation))
            for name in (budget.metric for budget in env.budgets)
        }
        if all(costs[budget.metric] <= budget.limit for budget in env.budgets):
            expected.add(allocation)
    assert found == expected
    assert 1 < len(expected) < len(pairs) ** 3


def test_a_group_is_seen_as_one_layer_with_the_sum_of_what_adds_up():
    env = make_env(tied=TIED, budget=0.9)
    described = describe_groups(env.layers, env.walk)
    assert [layer.name for layer in described] == ["layer0", "layer1", "layer2", "layer3"]
    for layer, members in zip(described, MEMBERS, strict=True):
        first = env.layers[members[0]]
        assert layer.params == sum(env.layers[index].params for index in members)
        assert layer.macs == sum(env.layers[index].macs for index in members)
        assert (layer.in_channels, layer.input_shape) == (first.in_channels, first.input_shape)
    rows = [dict(zip(env.feature_names, row.tolist(), strict=True)) for row in play(env, [1, 2, 3, 4])[0]]
    params = np.array([layer.params for layer in described], dtype=float)
    expected = (params - params.min()) / (params.max() - params.min())
    assert [row["parameters"] for row in rows[:4]] == pytest.approx(expected)
    harm = env.evaluator.sensitivity
    expected = sensitivity_feature(np.array([harm[list(members)].sum() for members in MEMBERS]))
    assert [row["sensitivity"] for row in rows[:4]] == pytest.approx(expected)
    size = env.tables["size"]
    spent = [0.0]
    for members, bits in zip(MEMBERS, (3, 4, 5, 6), strict=True):
        spent.append(spent[-1] + sum(size.values[index, bits - 1, 7] for index in members))
    assert [row["size_so_far"] for row in rows] == pytest.approx([cost / size.reference for cost in spent])


def test_render_shows_every_layer():
    env = make_env(tied=TIED, budget=0.9, render_mode="ansi")
    play(env, [0, 3, 5, 1])
    lines = env.render().splitlines()
    assert len(lines) == 6
    assert lines[1].replace("layer1", "") == lines[4].replace("layer4", "")


@pytest.mark.parametrize(
    "pinned", [{"layer1": 8}, "first_last", {"layer1": 8, "layer4": 4}, {"layer1": (8, 8), "layer4": (8, 4)}]
)
def test_part_of_a_group_cannot_be_pinned(pinned):
    with pytest.raises(QuantenvError, match="pinned at different bits, or not all of them"):
        make_env(tied=TIED, pinned=pinned, budget=0.9)


def test_a_whole_group_can_be_pinned():
    env = make_env(tied=TIED, pinned={"layer1": 8, "layer4": 8}, budget=1.0)
    assert env.decision_layers.tolist() == [0, 2, 3]
    assert play(env, [0, 0, 0])[2][-1]["bits"][:, 0].tolist() == [2, 8, 2, 2, 8, 2]


def test_bits_that_the_device_lacks_stay_closed(monkeypatch):
    device(monkeypatch, weight_bits=(4, 8))
    *_, [*_, end] = play(make_env(tied=TIED, budget=0.8), highest)
    assert set(end["bits"][:, 0].tolist()) <= {4, 8}


def test_unknown_layers_are_named():
    with pytest.raises(QuantenvError, match="Unknown tied layer 'layr1'"):
        make_env(tied=[["layer0", "layr1"]])
