import dataclasses
import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from quantenv.core.allocation import Allocation
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.wrappers import ContinuousBits
from quantenv.hardware.devices import load_device
from tests.envs.synthetic_env import highest, make_env, play, same
from tests.synthetic import AdditiveEvaluator, synthetic_layers

CONSTRAINTS = ("mask", "project", "reject", "lagrangian")
OBSERVATIONS = ("haq", "blog", "full")
DECISIONS = ("weights", "weights+activations", "joint")
MATRIX = list(itertools.product(CONSTRAINTS, OBSERVATIONS, DECISIONS))


def device(monkeypatch, **changes):
    """Makes environments use a changed generic device."""
    changed = dataclasses.replace(load_device("generic"), **changes)
    monkeypatch.setattr("quantenv.envs.environment.load_device", lambda name: changed)


# The contract with Gymnasium and SB3


def check_both(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*symmetric and normalized Box")  # HAQ's actions are in [0, 1]
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*not having a spec|.*`spec` is None|.*spec.*None")
        gymnasium_check_env(env, skip_render_check=True)
        sb3_check_env(env)


@pytest.mark.parametrize(("constraint", "observation", "decisions"), MATRIX)
@pytest.mark.parametrize("count", [1, 6])
def test_both_checkers_pass(constraint, observation, decisions, count):
    kwargs = {"constraint": constraint, "observation": observation, "decisions": decisions}
    check_both(make_env(count, budget={"size": 0.4, "latency": 0.8}, **kwargs))


@pytest.mark.parametrize("decisions", DECISIONS)
def test_both_checkers_pass_on_continuous_actions(decisions):
    check_both(ContinuousBits(make_env(decisions=decisions, constraint="project")))


@pytest.mark.parametrize(("constraint", "observation", "decisions"), MATRIX)
def test_two_environments_in_lock_step_are_equal_to_the_bit(constraint, observation, decisions):
    kwargs = {
        "constraint": constraint,
        "observation": observation,
        "decisions": decisions,
        "reward": "weighted",
        "reward_weights": {"accuracy": 1.0, "energy": 0.2},
        "pinned": "first_last",
        "budget": 0.7,
    }
    left, right = make_env(**kwargs), make_env(**kwargs)
    rng = np.random.default_rng(0)
    assert same(left.reset(seed=3), right.reset(seed=3))
    for _ in range(40):
        action = int(rng.integers(left.action_space.n))
        step = left.step(action)
        assert same(step, right.step(action))
        assert same(left.action_masks(), right.action_masks())
        if step[2]:
            assert same(left.reset(), right.reset())


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_same_seed_gives_the_same_episodes_again(constraint):
    env = make_env(constraint=constraint, budget=0.4)
    runs = []
    for _ in range(2):
        env.reset(seed=5)
        runs.append([play(env, actions) for actions in ([6] * 6, [0] * 6, [5, 1, 6, 6, 2, 6])])
    assert same(runs[0], runs[1])
    assert env.evaluations == 6


def test_global_random_states_are_untouched():
    # An environment constructor that reseeded torch once turned three seeds into one.
    def states():
        return random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    env = make_env(render_mode="rgb_array")
    env.reset(seed=1)
    for _ in range(6):
        env.step(env.action_space.sample())
        env.render()
    for left, right in zip(before, states(), strict=True):
        assert str(left) == str(right)


# Traps of earlier systems


@pytest.mark.parametrize(("constraint", "observation", "decisions"), MATRIX)
def test_an_episode_knows_nothing_of_the_one_before(constraint, observation, decisions):
    # HAQ's first observation held the last action of the previous episode.
    env = make_env(constraint=constraint, observation=observation, decisions=decisions, budget=0.5)
    fresh = play(env, [0] * env.n_decisions)
    play(env, [env.action_space.n - 1] * env.n_decisions)
    again = play(env, [0] * env.n_decisions)
    assert same(fresh[0], again[0])
    env.reset()
    env.step(env.action_space.n - 1)  # an episode given up half-way leaves nothing behind either
    assert same(play(env, [0] * env.n_decisions)[0], fresh[0])


@pytest.mark.parametrize("action", [-1, 7, 100, 1.0, "2", None, np.array([1])])
def test_actions_outside_the_space_are_errors(action):
    # HAQ's bit -1 indexed a table from its end.
    env = make_env()
    env.reset()
    with pytest.raises(QuantenvError, match="expected a whole number from 0 to 6"):
        env.step(action)


@pytest.mark.parametrize("decisions", DECISIONS)
def test_projection_reports_what_was_executed_not_what_was_proposed(decisions):
    # HAQ's replay stored the proposed actions with the reward of the projected allocation.
    env = make_env(decisions=decisions, constraint="project", budget={"size": 0.4, "bops": 0.4})
    most = env.action_space.n - 1
    _, rewards, infos = play(env, [most] * env.n_decisions)
    end = infos[-1]
    assert end["feasible"] == 1
    assert (end["executed_actions"] != most).any()
    assert end["executed_action"] == end["executed_actions"][-1]
    assert end["corrected"] == 1
    replayed = play(env, end["executed_actions"].tolist())
    assert replayed[2][-1]["bits"].tolist() == end["bits"].tolist()
    assert replayed[1][-1] == rewards[-1]
    assert replayed[2][-1]["corrected"] == 0


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("decisions", DECISIONS)
@pytest.mark.parametrize("budget", [0.8, 1.0])
def test_pinned_layers_hold_under_and_over_budget(constraint, decisions, budget):
    # HAQ's pins applied only to allocations that were over budget.
    env = make_env(constraint=constraint, decisions=decisions, budget=budget, pinned={"layer0": 8, "layer3": (5, 7)})
    assert set(env.decision_layers.tolist()) == {1, 2, 4, 5}
    for action in (0, env.action_space.n - 1):
        bits = play(env, [action] * env.n_decisions)[2][-1]["bits"]
        assert bits[[0, 3]].tolist() == [[8, 8], [5, 7]]


@pytest.mark.parametrize("decisions", DECISIONS)
def test_continuous_actions_never_give_zero_bits(decisions):
    # Unclamped rounding gave 0 bits.
    env = ContinuousBits(make_env(decisions=decisions, bits=range(1, 9), constraint="project", budget=0.5))
    for value in (0.0, 1.0):
        env.reset()
        for _ in range(env.unwrapped.n_decisions):
            _, _, _, _, info = env.step(np.full(env.action_space.shape, value, dtype=np.float32))
        assert info["bits"].min() >= 1
        assert info["bits"].max() <= 8


# What an episode says


def test_the_end_tells_the_truth():
    evaluator = AdditiveEvaluator()
    env = QuantizationEnv(None, evaluator=evaluator, observation="haq", budget={"size": 0.5, "bops": 0.6})
    _, rewards, infos = play(env, highest)
    end = infos[-1]
    weights, activations = end["bits"].T.tolist()
    [expected] = evaluator.evaluate([Allocation.make(env.layers, weights, activations)])
    assert end["accuracy"] == expected.accuracy
    assert end["loss"] == expected.loss
    assert rewards == [0.0] * 5 + [pytest.approx(expected.accuracy - 0.96)]
    for metric, table in env.tables.items():
        assert end[f"cost_{metric}"] == pytest.approx(table.cost(weights, activations))
    for budget in env.budgets:
        assert end[f"budget_{budget.metric}"] == budget.limit
        assert end[f"cost_{budget.metric}"] <= budget.limit
    assert end["feasible"] == 1
    assert end["evaluations"] == env.evaluations == 1
    assert end["bits"].dtype == end["executed_actions"].dtype == np.int64
    assert [info["decision"] for info in infos] == list(range(7))
    assert end["action_mask"].tolist() == [1] * 7
    assert "penalty_lambda" not in end


def test_one_evaluation_is_charged_for_each_finished_episode_only():
    evaluator = AdditiveEvaluator()
    env = QuantizationEnv(None, evaluator=evaluator, observation="haq")
    for episode in range(3):
        assert play(env, highest)[2][-1]["evaluations"] == episode + 1
    env.reset()
    env.step(0)
    env.reset(seed=0)
    assert env.evaluations == evaluator.calls == 3


@settings(max_examples=40, deadline=None)
@given(
    decisions=st.sampled_from(DECISIONS),
    budget=st.floats(0.3, 1.0),
    seed=st.integers(0, 1000),
    bits=st.sampled_from([(2, 3, 4, 5, 6, 7, 8), (2, 5, 8), (1, 2, 4)]),
)
def test_closed_options_are_executed_as_the_nearest_open_one_and_reported(decisions, budget, seed, bits):
    env = make_env(decisions=decisions, budget={"size": budget, "bops": budget}, bits=bits)
    rng = np.random.default_rng(seed)
    _, info = env.reset()
    executed = []
    for _ in range(env.n_decisions):
        mask = info["action_mask"].astype(bool)
        assert mask.tolist() == env.action_masks().tolist()
        assert mask.any()
        action = int(rng.integers(env.action_space.n))
        _, _, _, _, info = env.step(action)
        executed.append(info["executed_action"])
        assert mask[executed[-1]]
        assert info["corrected"] == int(executed[-1] != action) == int(not mask[action])
    assert info["feasible"] == 1
    assert info["executed_actions"].tolist() == executed


def test_under_mask_exactly_the_feasible_allocations_are_reached():
    env = make_env(4, bits=(2, 4, 8), decisions="joint", budget={"size": 0.45, "bops": 0.4})
    size, bops = (env.tables[name].values for name in ("size", "bops"))
    found = set()

    def descend(prefix):
        _, info = env.reset()
        for action in prefix:
            _, _, _, _, info = env.step(action)
        if len(prefix) == 4:
            assert info["feasible"] == 1
            found.add(tuple(map(tuple, info["bits"].tolist())))
            return
        for action in np.flatnonzero(info["action_mask"]).tolist():
            descend([*prefix, action])

    descend([])
    expected = set()
    for bits in itertools.product(itertools.product((2, 4, 8), repeat=2), repeat=4):
        costs = [sum(values[i, w - 1, a - 1] for i, (w, a) in enumerate(bits)) for values in (size, bops)]
        if all(cost <= budget.limit for cost, budget in zip(costs, env.budgets, strict=True)):
            expected.add(bits)
    assert found == expected
    assert 100 < len(expected) < 9**4


# Constraints and rewards together


def test_reject_replaces_the_reward_but_not_the_accuracy():
    env = make_env(constraint="reject", constraint_options={"infeasible_reward": -math.inf}, budget=0.4)
    _, rewards, infos = play(env, [6] * 6)
    assert rewards[-1] == -math.inf
    assert infos[-1]["feasible"] == 0
    assert infos[-1]["accuracy"] > 0.9
    assert play(make_env(constraint="reject", budget=0.4), [6] * 6)[1][-1] == -1.0


def test_lagrangian_subtracts_lambda_times_the_excess_of_every_budget():
    budgets = {"size": 0.4, "bops": 0.5}
    base = make_env(budget=1.0)
    env = make_env(constraint="lagrangian", constraint_options={"initial": 2.0}, budget=budgets)
    _, [*_, reward], [*_, end] = play(env, [6] * 6)
    excess = (1 / 0.4 - 1) + (1 / 0.5 - 1)
    assert end["penalty_lambda"] == 2.0
    assert reward == pytest.approx(play(base, [6] * 6)[1][-1] - 2.0 * excess)
    assert play(env, [6] * 6)[2][-1]["penalty_lambda"] == pytest.approx(2.0 + 0.05 * 0.9)  # lives on
    env.reset(seed=0)
    assert play(env, [6] * 6)[2][-1]["penalty_lambda"] == 2.0


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_weighted_reward_composes_with_every_constraint(constraint):
    env = make_env(
        constraint=constraint,
        budget=0.5,
        reward="weighted",
        reward_scale=0.5,
        reward_weights={"accuracy": 2.0, "size": 0.3, "energy": 0.1},
    )
    _, [*_, reward], [*_, end] = play(env, [1] * 6)  # 3 bits: within budget
    energy = end["cost_energy"] / env.tables["energy"].reference  # no budget: in units of its 8-bit cost
    expected = 0.5 * (2.0 * end["accuracy"] - 0.3 * end["cost_size"] / end["budget_size"] - 0.1 * energy)
    assert reward == pytest.approx(expected)


# Devices


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("decisions", DECISIONS)
def test_bits_that_the_device_lacks_are_closed_under_every_constraint(monkeypatch, constraint, decisions):
    device(monkeypatch, weight_bits=(4, 8), activation_bits=(2, 8))
    env = make_env(constraint=constraint, decisions=decisions, budget=0.7)
    rng = np.random.default_rng(0)
    for _ in range(5):
        *_, [*_, end] = play(env, lambda mask: int(rng.integers(len(mask))))
        assert set(end["bits"][:, 0].tolist()) <= {4, 8}
        assert set(end["bits"][:, 1].tolist()) <= {2, 8}


def test_pins_and_fixed_activations_that_the_device_lacks_are_refused(monkeypatch):
    device(monkeypatch, weight_bits=(2, 4), activation_bits=(4,))
    with pytest.raises(QuantenvError, match="activation_bits=8"):
        make_env(budget=0.9)
    with pytest.raises(QuantenvError, match="pinned at 8/8"):
        make_env(budget=0.9, activation_bits=4, pinned="first_last")
    assert make_env(budget=0.9, activation_bits=4, bits=(2, 3, 4)).reset()[1]["action_mask"].tolist() == [1, 0, 1]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "sise"}, "Did you mean 'size'"),
        ({"device": "genric"}, "Did you mean 'generic'"),
        ({"decisions": "wieghts"}, "Did you mean 'weights'"),
        ({"observation": "hag"}, "Did you mean 'haq'"),
        ({"constraint": "projection"}, "Did you mean 'project'"),
        ({"constraint_options": {"lambda": 1}}, "takes no options"),
        ({"reward": "weigthed"}, "Did you mean 'weighted'"),
        ({"reward_weights": {"size": 1}}, "no effect"),
        ({"reward_scale": -1}, "reward_scale"),
        ({"render_mode": "human"}, "expected None, 'ansi' or 'rgb_array'"),
        ({"sensitivity": None}, "task is None"),
        ({"evaluator": "ptq"}, "task is None"),
        ({"evaluator": 3}, "an Evaluator object"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(QuantenvError, match=message):
        make_env(**arguments)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_an_infeasible_budget_is_refused_at_construction(constraint):
    with pytest.raises(InfeasibleBudgetError):
        make_env(budget=0.2, constraint=constraint)
    with pytest.raises(InfeasibleBudgetError):
        make_env(budget=0.4, constraint=constraint, pinned={"layer1": 8, "layer2": 8, "layer3": 8, "layer4": 8})


def test_a_sensitivity_that_is_not_shown_is_not_asked_for():
    assert QuantizationEnv(None, evaluator=AdditiveEvaluator(), observation="haq").observation_space.shape == (10,)


def test_steps_need_a_running_episode():
    env = make_env(2)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.action_masks()
    play(env, [0, 0])
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_attributes_describe_the_environment():
    env = make_env(synthetic_layers(3), bits=(4, 2), decisions="weights+activations", budget=0.75)
    assert env.bits == (2, 4)
    assert env.n_decisions == 6
    assert env.decision_layers.tolist() == [0, 0, 1, 1, 2, 2]
    assert env.allowed.shape == (3, 8, 8)
    assert env.constraint == "mask"
    assert env.reference.accuracy == 0.96
    assert [budget.metric for budget in env.budgets] == ["size"]
    assert list(env.tables) == ["size", "bops", "latency", "energy", "memory"]
