"""What callers may write for the arguments of environments: taken for what it means, or refused in one sentence."""

import math
from decimal import Decimal
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeAwareObservation

import quantenv  # noqa: F401 - registers the ids
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.haq import HAQEnv
from quantenv.envs.multi_objective import MultiObjectiveEnv
from quantenv.envs.vector import VectorTableEnv
from quantenv.envs.wrappers import ContinuousBits
from tests.envs.synthetic_env import highest, make_env, play, same
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(4, bits=(2, 4, 8))
HUGE = 10**4000  # above what a float holds, and below what is printed


def arguments(env):
    """What an environment was made of, as far as these tests change it."""
    return env.bits, [(each.metric, each.limit) for each in env.budgets], env.walk.start.tolist(), env.walk.members


@pytest.mark.parametrize(
    ("spelt", "plain"),
    [
        ({"bits": np.array([4, 2])}, {"bits": (2, 4)}),
        ({"bits": np.array([4, 2], dtype=np.uint8)}, {"bits": (2, 4)}),
        ({"bits": torch.tensor([2, 4])}, {"bits": (2, 4)}),
        ({"bits": range(2, 5, 2)}, {"bits": (2, 4)}),
        ({"bits": [np.int8(2), np.array(4), torch.tensor(8)]}, {"bits": (2, 4, 8)}),
        ({"bits": {2: "a", 4: "b"}.keys()}, {"bits": (2, 4)}),
        ({"activation_bits": np.int64(8)}, {"activation_bits": 8}),
        ({"activation_bits": torch.tensor(8)}, {"activation_bits": 8}),
        ({"budget": np.float64(0.5)}, {"budget": 0.5}),
        ({"budget": np.float32(0.5)}, {"budget": 0.5}),
        ({"budget": np.array(0.5)}, {"budget": 0.5}),
        ({"budget": np.array([0.5])}, {"budget": 0.5}),
        ({"budget": torch.tensor(0.5)}, {"budget": 0.5}),
        ({"budget": Decimal("0.5")}, {"budget": 0.5}),
        ({"budget": Fraction(1, 2)}, {"budget": 0.5}),
        ({"budget": np.str_("0.5")}, {"budget": 0.5}),
        ({"budget": 1}, {"budget": 1.0}),
        ({"budget": ["0.5"]}, {"budget": 0.5}),
        ({"metric": ("size", "bops"), "budget": np.array([0.5, 0.75])}, {"budget": {"size": 0.5, "bops": 0.75}}),
        ({"metric": np.array(["size", "bops"]), "budget": (0.5, 0.75)}, {"budget": {"size": 0.5, "bops": 0.75}}),
        ({"metric": ["size", "bops"], "budget": torch.tensor([0.5, 0.75])}, {"budget": {"size": 0.5, "bops": 0.75}}),
        ({"budget": {"size": np.float32(0.5), "bops": Fraction(3, 4)}}, {"budget": {"size": 0.5, "bops": 0.75}}),
        ({"pinned": {"layer1": np.int64(8)}}, {"pinned": {"layer1": 8}}),
        ({"pinned": {"layer1": np.array([8, 8])}}, {"pinned": {"layer1": 8}}),
        ({"pinned": {"layer1": torch.tensor([8, 8])}}, {"pinned": {"layer1": 8}}),
        ({"pinned": {"layer1": [8, 8]}}, {"pinned": {"layer1": 8}}),
        ({"regret": np.False_}, {"regret": False}),
        ({"reward_scale": np.float32(0.5)}, {"reward_scale": 0.5}),
        ({"reward_scale": Fraction(1, 2)}, {"reward_scale": 0.5}),
        (
            {"reward": "weighted", "reward_weights": {"accuracy": np.float32(1), "size": Decimal("0.5")}},
            {"reward": "weighted", "reward_weights": {"accuracy": 1.0, "size": 0.5}},
        ),
        (
            {"constraint": "reject", "constraint_options": {"infeasible_reward": np.float64(-2)}},
            {"constraint": "reject", "constraint_options": {"infeasible_reward": -2}},
        ),
        ({"sensitivity": [1, 2, 3, 4]}, {"sensitivity": np.array([1.0, 2, 3, 4])}),
        ({"sensitivity": torch.tensor([1.0, 2, 3, 4])}, {"sensitivity": np.array([1.0, 2, 3, 4])}),
    ],
)
def test_many_spellings_mean_the_same(spelt, plain):
    left, right = (QuantizationEnv(TABLE, **{"budget": 0.6, **given}) for given in (spelt, plain))
    assert arguments(left) == arguments(right)
    assert same(play(left, highest), play(right, highest))


def test_ties_as_arrays():
    tied = [["layer0", "layer2"]]
    left, right = make_env(4, tied=np.array(tied)), make_env(4, tied=tied)
    assert left.walk.members == right.walk.members == ((0, 2), (1,), (3,))
    assert make_env(4, tied=(tuple(tied[0]),)).walk.members == right.walk.members


#: Values of an argument that are refused whatever the others are.
REFUSED = {
    "bits": [
        [],
        "248",
        4,
        {2, 4},
        {2: 4},
        [2, 2],
        [2.0, 4],
        [True, 2],
        [2, 9],
        [0, 2],
        np.array([2.0, 4]),
        np.array([[2, 4]]),
        [math.nan],
        ["2"],
        np.zeros(0, int),
        [HUGE],
        [None],
        np.array([True, False]),
        b"24",
    ],
    "activation_bits": [8.0, True, "8", None, math.nan, 0, 9, [8], np.float64(8), HUGE],
    "budget": [
        10**400,
        -(10**400),
        HUGE,
        math.nan,
        math.inf,
        -math.inf,
        0,
        0.0,
        -0.4,
        1.5,
        True,
        None,
        [],
        (),
        {},
        "",
        "  ",
        [0.4, 0.5],
        np.array([]),
        np.array([[0.4]]),
        np.array(np.nan),
        torch.tensor(math.inf),
        Decimal("NaN"),
        Decimal(-1),
        Fraction(3, 2),
        {"weight": 0.4},
        {3: 0.4},
        {"size": None},
        {"size": True},
        {"size": [0.4]},
        b"0.4",
        0.4j,
        {0.4},
        object(),
        "9" * 100000,
        "9" * 100000 + "KiB",
        "1" + "0" * 400,
        "0.4,0.5",
        "size=",
        "=0.4",
        [None],
        "size=0.4,size=0.5",
        "1e400KiB",
        "-3KiB",
        "3 parsecs",
        np.array(["a"]),
        np.array([True]),
        "size=0.4,0.5",
    ],
    "metric": [
        None,
        3,
        "",
        [],
        "Size",
        ("size", "size"),
        {"size"},
        {"size": 1},
        ["size", "bops"],
        [["size"]],
        b"size",
        np.array(["size", "bops"]),
        np.array([1]),
        True,
        [HUGE],
        math.nan,
    ],
    "device": [None, 3, ["generic"], "cpu9", np.array(["generic", "cpu"]), b"generic", "no.yaml"],
    "decisions": [None, 3, ["weights"], "weight", np.array(["weights", "joint"]), {}],
    "observation": [None, 3, ["haq"], "HAQ", np.array(["haq", "blog"])],
    "constraint": [None, 3, ["mask"], "masked", np.array(["mask", "project"])],
    "constraint_options": [{"infeasible_reward": 1}, 3, ["initial"], {1: 2}],
    "reward": [None, 3, ["accuracy"], "acc"],
    "reward_scale": [math.nan, math.inf, 0, -1, True, "1", None, [1.0], 1j, 10**400],
    "reward_weights": [{"size": 1.0}],
    "pinned": [3, "first", ["layer0"], np.array(["first_last", "a"]), {"layer9": 8}, {3: 8}, True]
    + [
        {"layer1": bits} for bits in (8.0, True, None, "8", 9, 0, (8,), (8, 8, 8), (8, 8.5), math.nan, [[8], [8]], HUGE)
    ],
    "tied": [3, "layer0", ["layer0"], [3], [[]], [["layer0", "layer9"]], [["layer0", 3]], {"a": 1}, True],
    "regret": ["no", 0, 1, None, [], math.nan],
    "sensitivity": [
        3,
        "abc",
        [1, 2],
        [1, 2, 3, math.nan],
        [1, 2, 3, math.inf],
        [1, 2, 3, -1],
        [1, 2, 3, "a"],
        [1, 2, 3, 1j],
        [[1], [2, 3]],
        [None] * 4,
        np.zeros((4, 1)),
    ],
    "render_mode": [3, "human", "ANSI", ["ansi"], np.array(["ansi", "rgb_array"]), True],
    "evaluator": [3, None, "ptp", ["ptq"], AdditiveEvaluator, object()],
    "task": [3, ["digits_table"], "digits_tabel", torch.nn.Linear(2, 2), object(), True, "no.npz"],
}

#: Arguments that are refused together.
REFUSED_TOGETHER = [
    *({"reward": "weighted", "reward_weights": weights} for weights in (None, {}, 3, ["accuracy"], {"accuracy": "1"})),
    *({"reward": "weighted", "reward_weights": {"size": weight}} for weight in (math.nan, math.inf, -1, True, 10**400)),
    {"reward": "weighted", "reward_weights": {"sise": 1.0}},
    *(
        {"constraint": "reject", "constraint_options": {"infeasible_reward": value}}
        for value in (math.nan, math.inf, True, "1", None, 10**400, [1])
    ),
    *(
        {"constraint": "lagrangian", "constraint_options": {name: value}}
        for name in ("initial", "learning_rate", "target")
        for value in (math.nan, -1, math.inf, True, "1", None)
    ),
    *({"constraint": "lagrangian", "constraint_options": {name: 1.0}} for name in ("intial", "_lambda", "tells")),
    *({"sensitivity": value, "observation": "haq"} for value in ([1, 2], [1, 2, 3, math.nan])),
]

CASES = [{name: value} for name, values in REFUSED.items() for value in values] + REFUSED_TOGETHER


@pytest.mark.parametrize("given", CASES, ids=[f"{index}-{'-'.join(case)}" for index, case in enumerate(CASES)])
def test_what_makes_no_sense_is_refused_in_one_sentence(given):
    with pytest.raises(QuantenvError) as caught:
        QuantizationEnv(**{"task": TABLE, "budget": 0.5, **given})
    text = str(caught.value)
    assert len(text) < 500
    assert "\n" not in text


def test_a_long_text_is_refused_at_once():
    with pytest.raises(QuantenvError, match="not a number"):
        QuantizationEnv(TABLE, budget="1" * 200_000 + "!")  # a careless pattern takes hours


@pytest.mark.parametrize("budget", ["1e-300KiB", "1B", 1e-300, np.float64(1e-9), Decimal("1e-400") + Decimal("1e-30")])
def test_budgets_below_everything_are_infeasible(budget):
    with pytest.raises(InfeasibleBudgetError, match="feasible interval"):
        QuantizationEnv(TABLE, budget=budget)


# Other environments


@pytest.mark.parametrize("levels", [1, 0, 2.0, True, "4", None, math.nan, 10**9])
def test_levels_of_a_sweep_are_checked(levels):
    with pytest.raises(QuantenvError, match="levels is"):
        BudgetSweepEnv(TABLE, levels=levels)


@pytest.mark.parametrize("level", [-1, 4, 1.0, True, "1", math.nan, [1], np.array([1]), HUGE])
def test_a_level_is_checked_before_anything_is_drawn(level):
    env, other = BudgetSweepEnv(TABLE, levels=4), BudgetSweepEnv(TABLE, levels=4)
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(QuantenvError, match=r"level is .*: expected a whole number from 0 to 3"):
        env.reset(options={"level": level})
    assert [env.reset()[1]["budget_size"] for _ in range(5)] == [other.reset()[1]["budget_size"] for _ in range(5)]


def test_levels_of_numpy_are_levels():
    env = BudgetSweepEnv(TABLE, levels=np.int64(4))
    for level in (2, np.int8(2), np.array(2), torch.tensor(2)):
        assert env.reset(options={"level": level})[1]["budget_size"] == env.level_limits[2]


@pytest.mark.parametrize(
    "options", [{"regret": True}, {"regret": "yes"}, {"reward": ["accuracy"]}, {"reward": "weighted"}]
)
def test_a_sweep_takes_only_what_goes_with_changing_budgets(options):
    with pytest.raises(QuantenvError, match="fixed budget"):
        BudgetSweepEnv(TABLE, **options)


@pytest.mark.parametrize(
    "objectives", [(), "accuracy", ["accuracy", "accuracy"], ["acc"], [3], 3, None, [None], {"size"}]
)
def test_objectives_are_checked(objectives):
    with pytest.raises(QuantenvError, match="objective"):
        MultiObjectiveEnv(TABLE, objectives=objectives)


@pytest.mark.parametrize(
    "switches",
    [
        3,
        ["pins"],
        "pins",
        {"pin": "always"},
        {"pins": True},
        {"pins": "sometimes"},
        {"inverted_flag": 1},
        {1: 2},
        [],
        0,
    ],
)
def test_switches_are_checked(switches):
    with pytest.raises(QuantenvError):
        HAQEnv(None, evaluator=AdditiveEvaluator(), switches=switches)


@pytest.mark.parametrize(
    "given", [{"pinned": np.array([1, 2])}, {"constraint": ["project"]}, {"reward": 3}, {"pinned": {}}]
)
def test_haq_takes_nothing_that_is_not_its_own(given):
    with pytest.raises(QuantenvError, match="is not HAQ's search"):
        HAQEnv(None, evaluator=AdditiveEvaluator(), **given)


@pytest.mark.parametrize("decisions", [None, 3, ["weights"], np.array(["weights", "joint"]), "weight"])
def test_haqs_decisions_are_checked(decisions):
    with pytest.raises(QuantenvError, match="Unknown decisions"):
        HAQEnv(None, evaluator=AdditiveEvaluator(), decisions=decisions, switches={"inverted_flag": True})


@pytest.mark.parametrize("single", [3, "digits_table", gymnasium.make("quantenv/DigitsTable-v0")])
def test_what_is_copied_is_a_plain_environment(single):
    with pytest.raises(QuantenvError, match="expected a QuantizationEnv without wrappers"):
        VectorTableEnv(2, single=single)


# Reset and step


@pytest.mark.parametrize("seed", [-1, 1.5, 1.0, True, "1", math.nan, [1], np.array([1, 2]), {}])
def test_seeds_are_checked(seed):
    for env in (QuantizationEnv(TABLE), BudgetSweepEnv(TABLE), HAQEnv(None, evaluator=AdditiveEvaluator())):
        with pytest.raises(QuantenvError, match=r"seed is .*: expected a whole number, at least 0"):
            env.reset(seed=seed)


def test_seeds_of_many_kinds_are_the_same_seed():
    env = BudgetSweepEnv(TABLE)
    draws = []
    for seed in (7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)):
        draws.append([env.reset(seed=seed)[1]["budget_size"], *(env.reset()[1]["budget_size"] for _ in range(3))])
    assert draws == draws[:1] * 5
    assert env.reset(seed=2**70)[1]["budget_size"] > 0


@pytest.mark.parametrize("options", [3, "level", ["level"], {1: 2}, True])
def test_options_are_checked(options):
    for env in (QuantizationEnv(TABLE), BudgetSweepEnv(TABLE), VectorTableEnv(2, task=TABLE)):
        with pytest.raises(QuantenvError, match="options is"):
            env.reset(options=options)


def test_options_of_wrappers_pass_but_no_misspelt_level():
    for env in (QuantizationEnv(TABLE), BudgetSweepEnv(TABLE)):
        env.reset(options={"minari_autoseed": False})
    for name in ("levels", "Level", "levle"):
        with pytest.raises(QuantenvError, match=r"Unknown option of reset: .* Did you mean 'level'"):
            BudgetSweepEnv(TABLE).reset(options={name: 1})


@pytest.mark.parametrize("action", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)])
def test_actions_of_many_kinds_are_the_same_action(action):
    env = QuantizationEnv(TABLE)
    env.reset()
    assert env.step(action)[4]["executed_action"] == 1


@pytest.mark.parametrize(
    "action",
    [
        np.array([1]),
        [1],
        (1,),
        torch.tensor([1]),
        1.0,
        np.float32(1),
        True,
        np.True_,
        -1,
        3,
        HUGE,
        "1",
        None,
        math.nan,
        {},
    ],
)
def test_other_actions_are_refused_and_change_nothing(action):
    env = QuantizationEnv(TABLE)
    env.reset()
    with pytest.raises(QuantenvError, match=r"The action is .*: expected a whole number from 0 to 2\."):
        env.step(action)
    assert env.step(1)[4]["decision"] == 1


@pytest.mark.parametrize(
    "action",
    [
        math.nan,
        [math.nan],
        [math.inf],
        [0.5, 0.5],
        [],
        [[0.5]],
        0.5,
        None,
        "a",
        [None],
        ["a"],
        [1j],
        {},
        np.zeros((1, 1)),
    ],
)
def test_continuous_actions_are_checked(action):
    env = ContinuousBits(QuantizationEnv(TABLE))
    env.reset()
    with pytest.raises(QuantenvError, match=r"expected 1 finite number\(s\) in \[0, 1\]"):
        env.step(action)


@pytest.mark.parametrize(
    "action", [[0.5], (0.5,), np.array([0.5], dtype=np.float16), torch.tensor([0.5]), [Fraction(1, 2)]]
)
def test_continuous_actions_of_many_kinds(action):
    assert ContinuousBits(QuantizationEnv(TABLE)).action(action) == ContinuousBits(QuantizationEnv(TABLE)).action([0.5])


@pytest.mark.parametrize("executed", [[-1, 0], [0, 3], [0.0, 1.0], 1, [[0]], ["a"], None, [True]])
def test_executed_actions_are_checked(executed):
    with pytest.raises(QuantenvError, match=r"Executed actions are .*: expected whole numbers from 0 to 2"):
        ContinuousBits(QuantizationEnv(TABLE)).continuous(executed)


# By id


def test_the_module_may_stand_before_the_id():
    env = gymnasium.make("quantenv:quantenv/DigitsTable-v0", task=TABLE)
    assert env.spec.id == "quantenv/DigitsTable-v0"
    assert gymnasium.make_vec("quantenv:quantenv/DigitsTable-v0", num_envs=2, task=TABLE).num_envs == 2


def test_the_length_of_episodes_is_known_and_nothing_is_truncated():
    env = TimeAwareObservation(gymnasium.make("quantenv/DigitsTable-v0", task=TABLE))
    assert env.spec.max_episode_steps == 4
    assert env.observation_space.high[-1] == 4
    env.reset()
    seen = [env.step(0) for _ in range(4)]
    assert [observation[-1] for observation, *_ in seen] == [1, 2, 3, 4]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in seen] == [(False, False)] * 3 + [
        (True, False)
    ]
    changed = gymnasium.make("quantenv/DigitsTable-v0", task=TABLE, pinned={"layer1": 8}, budget=0.6)
    assert changed.spec.max_episode_steps == 3  # the arguments count, not the id
    assert gymnasium.make("quantenv/DigitsTable-v0", task=TABLE, max_episode_steps=2).spec.max_episode_steps == 2
    assert QuantizationEnv(TABLE).spec is None


def test_a_spec_with_the_length_makes_vectorised_environments():
    spec = gymnasium.make("quantenv/DigitsTable-v0", task=TABLE).unwrapped.spec
    assert isinstance(gymnasium.make_vec(spec, num_envs=2), VectorTableEnv)
    with pytest.raises(QuantenvError, match="max_episode_steps=3 would cut episodes of 4 decisions off"):
        gymnasium.make_vec("quantenv/DigitsTable-v0", num_envs=2, task=TABLE, max_episode_steps=3)
    with pytest.raises(QuantenvError, match="max_episode_steps is True"):
        VectorTableEnv(2, task=TABLE, max_episode_steps=True)
