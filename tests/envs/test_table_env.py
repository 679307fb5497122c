"""Environments over tables: what they offer, what they answer, and the registered ids."""

import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import quantenv  # noqa: F401 - registers the ids
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.registration import TABLE_ENVIRONMENTS
from quantenv.envs.vector import VectorTableEnv
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.evaluation.table.optimum import optimum
from tests.envs.synthetic_env import highest, make_env, play, same
from tests.envs.test_environment import check_both
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(4, bits=(2, 3, 4, 8), samples=10_000)
TIED = synthetic_table(5, groups=[[0, 3], [1], [2, 4]])


def every_end(env):
    """The last info of the episode of every allocation, and its weight bits."""
    for row in range(env.table.rows):
        allocation = env.table.allocation(row)
        bits = np.array([[allocation.weight_bits[group[0]], 8] for group in env.walk.members])
        yield allocation.weight_bits, play(env, env.walk.actions(bits).tolist())[2][-1]


# A table in place of an evaluator


def test_a_table_env_is_the_live_env_looked_up():
    live = make_env(4, bits=(2, 3, 4, 8), budget=0.45)
    looked_up = QuantizationEnv(TABLE, budget=0.45)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(4, size=4).tolist()
        left, right = play(live, actions), play(looked_up, actions)
        assert same(left[0], right[0])
        for key in left[2][-1].keys() - {"loss", "measured_evaluations"}:  # the live one was given its sensitivities
            assert np.array_equal(left[2][-1][key], right[2][-1][key]), key
        assert right[2][-1]["loss"] == round(float(left[2][-1]["loss"]), 6)
        assert left[1] == right[1]


def test_bits_and_ties_are_the_tables_unless_given():
    env = QuantizationEnv(TIED, budget=0.9)
    assert env.bits == (2, 4, 8)
    assert env.n_decisions == 3
    assert QuantizationEnv(TIED, bits=(4, 2), budget=0.9).bits == (2, 4)
    assert QuantizationEnv(TIED, tied=[["layer3", "layer0"], ["layer4", "layer2"]], budget=0.9).n_decisions == 3
    bits = play(env, [0, 1, 2])[2][-1]["bits"]
    assert bits.tolist() == [[2, 8], [4, 8], [8, 8], [2, 8], [8, 8]]


def test_an_evaluator_over_a_table_is_enough():
    env = QuantizationEnv(None, evaluator=TableEvaluator(TIED), budget=0.9, regret=True)
    assert same(play(env, highest), play(QuantizationEnv(TIED, budget=0.9, regret=True), highest))
    assert env.origin == ("synthetic", "linear")


def test_a_file_is_a_task(tmp_path):
    TABLE.save(tmp_path / "table.npz")
    env = QuantizationEnv(str(tmp_path / "table.npz"))
    assert same(play(env, highest), play(QuantizationEnv(TABLE), highest))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": (2, 3)}, "holds weight bits 2, 4, 8 beside 8-bit activations"),
        ({"activation_bits": 4}, "holds weight bits 2, 4, 8 beside 8-bit activations"),
        ({"decisions": "joint"}, "with decisions='weights'"),
        ({"pinned": {"layer1": 5}}, "choose bits and pins among them"),
        ({"pinned": {"layer1": (8, 4)}}, "choose bits and pins among them"),
        ({"tied": []}, "tied differs from the groups of table 'synthetic_table'"),
        ({"tied": [["layer0", "layer3"]]}, "tied differs from the groups"),
        ({"bits": ()}, "at least one"),
        ({"evaluator": "finetune"}, "not by 'finetune'"),
    ],
)
def test_what_a_table_does_not_hold_is_refused_at_once(arguments, message):
    with pytest.raises(QuantenvError, match=message):
        QuantizationEnv(TIED, **{"budget": 0.9, **arguments})


# Regret


@pytest.mark.parametrize("table", [TABLE, TIED])
@pytest.mark.parametrize("budget", [0.35, 0.6, 1.0])
def test_regret_is_what_brute_force_finds(table, budget):
    env = QuantizationEnv(table, budget=budget, constraint="reject", regret=True)
    ends = [end for _, end in every_end(env)]
    feasible = [end for end in ends if end["feasible"]]
    best = max(feasible, key=lambda end: (end["accuracy"], -end["loss"]))
    p, n = best["accuracy"], table.reference["search"].samples
    for end in ends:
        if end["feasible"]:
            assert end["regret"] == best["accuracy"] - end["accuracy"]
            assert end["regret_loss"] == end["loss"] - best["loss"]
        else:
            assert end["regret"] == end["regret_loss"] == math.inf
        assert end["regret_standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / n))
    assert min(end["regret"] for end in ends) == 0
    assert len(feasible) > 1


def test_the_optimum_is_among_what_the_episode_could_have_been():
    full = QuantizationEnv(TABLE, regret=True, budget=0.6)
    bounded = QuantizationEnv(TABLE, regret=True, budget=0.6, bits=(2, 4), pinned={"layer1": (4, 8)})
    allowed = np.zeros((4, 8, 8), dtype=bool)
    allowed[:, [1, 3], 7] = True
    allowed[1, 1] = False
    expected = optimum(TABLE, bounded.budgets, bounded.tables, allowed=allowed)
    assert bounded.regret.optimum == expected
    assert full.regret.optimum.best.evaluation.correct > expected.best.evaluation.correct
    ends = [play(bounded, actions)[2][-1] for actions in np.ndindex(2, 2, 2)]
    assert min(end["regret"] for end in ends) == 0


def test_regret_is_off_by_default_and_never_seen():
    plain, told = QuantizationEnv(TABLE), QuantizationEnv(TABLE, regret=True)
    left, right = play(plain, highest), play(told, highest)
    assert same(left[:2], right[:2])
    assert right[2][-1].keys() - left[2][-1].keys() == {"regret", "regret_loss", "regret_standard_error"}
    assert not any("regret" in name for name in told.feature_names)


def test_regret_needs_a_table():
    with pytest.raises(QuantenvError, match="regret=True needs every allocation's evaluation"):
        QuantizationEnv(None, evaluator=AdditiveEvaluator(), observation="haq", regret=True)


# The registered ids


@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
@pytest.mark.parametrize("table", [TABLE, TIED])
def test_both_checkers_pass(table, constraint):
    check_both(QuantizationEnv(table, constraint=constraint, budget=0.5, regret=True))


@pytest.mark.parametrize("name", TABLE_ENVIRONMENTS)
@pytest.mark.parametrize("arguments", [{}, {"constraint": "reject", "observation": "haq", "regret": True}])
def test_both_checkers_pass_on_the_ids(name, arguments):
    env = gymnasium.make(name, **arguments)
    check_both(env.unwrapped)
    assert env.unwrapped.n_decisions == 8
    assert env.action_space.n == 4
    *_, [*_, end] = play(env, lambda mask: int(np.flatnonzero(mask)[0]))
    assert end["feasible"] == 1


@pytest.mark.parametrize("name", TABLE_ENVIRONMENTS)
def test_the_ids_are_vectorised(name):
    envs = gymnasium.make_vec(name, num_envs=5)
    assert isinstance(envs.unwrapped, VectorTableEnv)
    _, infos = envs.reset(seed=0)
    for _ in range(8):
        *_, infos = envs.step(infos["action_mask"].argmax(axis=1))
    assert infos["feasible"].tolist() == [1] * 5


def test_a_table_env_needs_no_torch():
    code = (
        "import sys, gymnasium, quantenv; env = gymnasium.make('quantenv/DigitsTable-v0', regret=True); "
        "env.reset(); [env.step(0) for _ in range(8)]; "
        "gymnasium.make_vec('quantenv/DigitsTable-v0', num_envs=2).reset(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
