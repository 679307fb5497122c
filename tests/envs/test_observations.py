import numpy as np
import pytest

from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.observations import BLOG, HAQ, feature_names, sensitivity_feature
from tests.envs.synthetic_env import make_env, play


def layer(name, kind, channels, kernel, stride, size, params, macs):
    linear = kind == "linear"
    return LayerSpec(
        name=name,
        kind=kind,
        in_channels=channels[0],
        out_channels=channels[1],
        kernel_size=(kernel, kernel),
        stride=(stride, stride),
        groups=channels[0] if kind == "depthwise" else 1,
        input_shape=(channels[0],) if linear else (channels[0], size, size),
        output_shape=(channels[1],) if linear else (channels[1], size // stride, size // stride),
        params=params,
        bias_params=channels[1],
        macs=macs,
    )


NETWORK = (
    layer("stem", "conv", (2, 6), 3, 1, 8, 108, 6912),
    layer("depthwise", "depthwise", (6, 6), 3, 2, 8, 54, 864),
    layer("classifier", "linear", (6, 10), 1, 0, 1, 60, 60),
)


def named(env: QuantizationEnv, observations):
    return [dict(zip(env.feature_names, row.tolist(), strict=True)) for row in observations]


def test_haq_has_the_papers_ten_features_and_blog_eight():
    assert len(HAQ) == 10
    assert len(BLOG) == 8
    full = feature_names("full", ("size", "latency"))
    assert set(full) - set(HAQ) - set(BLOG) == {
        "budget_left_size",
        "reducible_size",
        "budget_left_latency",
        "reducible_latency",
    }
    assert len(set(full)) == len(full)
    with pytest.raises(QuantenvError, match="Did you mean 'full'"):
        feature_names("ful", ())


def test_layer_features_by_hand():
    env = make_env(NETWORK, observation="haq", budget=0.9)
    rows = named(env, play(env, [2, 2, 2])[0])
    hand = {
        "layer_index": [0, 0.5, 1],
        "in_channels": [0, 1, 1],
        "out_channels": [0, 0, 1],
        "kernel_size": [1, 1, 0],
        "stride": [0.5, 1, 0],
        "feature_map_size": [1, 1, 0],
        "parameters": [1, 0, 6 / 54],
        "depthwise": [0, 1, 0],
        "decides_weights": [1, 1, 1],
    }
    for name, values in hand.items():
        assert [row[name] for row in rows[:3]] == pytest.approx(values), name


def test_weight_and_activation_flag_and_previous_bits_are_the_right_way_round():
    env = make_env(NETWORK, observation="haq", budget=1.0, decisions="weights+activations", bits=(2, 4, 8))
    observations, _, infos = play(env, [0, 1, 2, 0, 1, 2])
    rows = named(env, observations)
    assert [row["decides_weights"] for row in rows] == [1, 0, 1, 0, 1, 0, 0]
    assert [row["previous_bits"] * 8 for row in rows] == pytest.approx([8, 2, 4, 8, 2, 4, 8])
    assert infos[-1]["bits"].tolist() == [[2, 4], [8, 2], [4, 8]]


def test_joint_decisions_show_the_mean_of_the_previous_bits():
    env = make_env(NETWORK, observation="haq", budget=1.0, decisions="joint", bits=(2, 4, 8))
    rows = named(env, play(env, [1, 8, 0])[0])
    assert [row["previous_bits"] * 8 for row in rows] == pytest.approx([8, 3, 8, 2])


@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_costs_so_far_budget_left_and_reducible_cost_by_hand(decisions):
    env = make_env(
        NETWORK, decisions=decisions, bits=(2, 4, 8), budget={"size": 0.75, "bops": 0.95}, pinned={"stem": 8}
    )
    rng = np.random.default_rng(0)
    observations, _, infos = play(env, lambda mask: int(rng.choice(np.flatnonzero(mask))))
    final = infos[-1]["bits"] - 1
    size, latency = env.tables["size"], env.tables["latency"]

    def completion(metric, decision, pick):
        """Cost of the layers not settled before a decision, each at its cheapest or dearest."""
        total = 0.0
        layers = env.decision_layers
        for index in set(layers[decision:].tolist()):
            options = np.argwhere(env.allowed[index])
            if decisions == "weights+activations" and decision % 2 == 1 and index == layers[decision]:
                options = [pair for pair in options if pair[0] == final[index, 0]]
            total += pick(env.tables[metric].values[index, w, a] for w, a in options)
        return total

    for decision, row in enumerate(named(env, observations)):
        per_layer = 2 if decisions == "weights+activations" else 1
        settled = range(1 + decision // per_layer)
        for table, name in ((size, "size_so_far"), (latency, "latency_so_far")):
            spent = sum(table.values[i, final[i, 0], final[i, 1]] for i in settled)
            assert row[name] == pytest.approx(spent / table.reference, rel=1e-5)
        for budget in env.budgets:
            metric, values = budget.metric, env.tables[budget.metric].values
            spent = sum(values[i, final[i, 0], final[i, 1]] for i in settled)
            spare = budget.limit - values[0, 7, 7] - completion(metric, 0, min)
            left = (budget.limit - spent - completion(metric, decision, min)) / spare
            assert row[f"budget_left_{metric}"] == pytest.approx(left, abs=1e-5)
            span = completion(metric, decision, max) - completion(metric, decision, min)
            whole = completion(metric, 0, max) - completion(metric, 0, min)
            assert row[f"reducible_{metric}"] == pytest.approx(span / whole, abs=1e-5)


def test_an_episode_starts_with_all_its_budget_and_ends_with_nothing_reducible():
    env = make_env(budget=0.4)
    rows = named(env, play(env, [3] * 6)[0])
    assert rows[0]["budget_left_size"] == rows[0]["reducible_size"] == 1
    assert rows[-1]["reducible_size"] == 0


def test_sensitivities_are_log_scaled():
    assert sensitivity_feature(np.array([1.0, 0.1, 0.01, 0.001])) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert sensitivity_feature(np.array([1.0, 1e-3, 0.0, 1e-9])) == pytest.approx([1, 0.5, 0, 0])
    assert sensitivity_feature(np.full(4, 3.0)).tolist() == [0] * 4
    assert sensitivity_feature(np.zeros(4)).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"expected one number per quantizable layer, \(3,\)"),
        ([1, -1, 1], "negative"),
        ([1, np.nan, 1], "NaN"),
    ],
)
def test_bad_sensitivities_are_refused(values, message):
    with pytest.raises(QuantenvError, match=message):
        make_env(3, sensitivity=np.array(values))


@pytest.mark.parametrize("observation", ["haq", "blog", "full"])
@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
@pytest.mark.parametrize("count", [1, 5])
def test_observations_stay_in_their_space(observation, decisions, constraint, count):
    env = make_env(
        count,
        observation=observation,
        decisions=decisions,
        constraint=constraint,
        budget={"size": 0.3, "latency": 0.9},
        bits=(2, 3, 7),
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        observations, _, _ = play(env, lambda mask: int(rng.integers(len(mask))))
        for row in observations:
            assert row.dtype == np.float32
            assert env.observation_space.contains(row)
            assert row.min() >= 0
            assert row.max() <= 1
