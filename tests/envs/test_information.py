"""Infos: one layout at reset, at each step and at the end, of every kind of environment, and what is known when."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.haq import HAQEnv
from quantenv.envs.multi_objective import MultiObjectiveEnv
from quantenv.envs.wrappers import ContinuousBits
from tests.envs.synthetic_env import highest, make_env, play
from tests.envs.test_spreads import rows
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(4, bits=(2, 3, 8))

MADE = {
    "table": lambda: QuantizationEnv(TABLE, constraint="reject", regret=True, budget=0.5),
    "two budgets": lambda: make_env(budget={"size": 0.6, "latency": 0.8}, decisions="joint"),
    "project": lambda: make_env(constraint="project", decisions="weights+activations", budget=0.5),
    "lagrangian": lambda: make_env(constraint="lagrangian", budget=0.5),
    "haq": lambda: HAQEnv(None, evaluator=AdditiveEvaluator(), switches={"replay_proposed": True}),
    "sweep": lambda: BudgetSweepEnv(TABLE, levels=4),
    "vector reward": lambda: MultiObjectiveEnv(TABLE, objectives=("accuracy", "size")),
    "hierarchical": lambda: make_env(rows(), decisions="hierarchical", budget=0.6),
    "wrapped": lambda: gymnasium.make("quantenv/DigitsTable-v0", task=TABLE),
}

#: What is known at reset, after a step and only at the end.
ALWAYS = {"action_mask", "decision", "evaluations", "measured_evaluations"}
STEPPED = {"executed_action", "corrected"}


def layout(info):
    return [(key, type(value), np.asarray(value).dtype, np.shape(value)) for key, value in info.items()]


@pytest.mark.parametrize("kind", MADE)
def test_every_info_has_the_same_keys_types_and_shapes(kind):
    env = MADE[kind]()
    infos = [info for _ in range(2) for info in play(env, highest)[2]]
    assert all(layout(info) == layout(infos[0]) for info in infos)
    for info in infos:
        for key, value in info.items():
            assert isinstance(value, np.int64 | np.float64 | np.ndarray), key
            assert np.asarray(value).dtype in (np.int8, np.int64, np.float64), key


@pytest.mark.parametrize("kind", MADE)
def test_what_is_not_known_yet_is_minus_one_and_what_is_known_is_not(kind):
    env = MADE[kind]()
    (begun, *steps, end), budgets = play(env, highest)[2], [each.metric for each in env.unwrapped.budgets]
    always = ALWAYS | {f"budget_{metric}" for metric in budgets}
    for info, known in [(begun, always), *((step, always | STEPPED) for step in steps), (end, set(end))]:
        for key, value in info.items():
            assert (np.asarray(value) == -1).all() == (key not in known), key
    assert begun["evaluations"] == 0
    assert end["evaluations"] == 1
    for budget in env.unwrapped.budgets:
        assert begun[f"budget_{budget.metric}"] == end[f"budget_{budget.metric}"]


def test_further_numbers_come_with_the_argument_that_asks_for_them():
    plain, regret = QuantizationEnv(TABLE), QuantizationEnv(TABLE, regret=True)
    soft = QuantizationEnv(TABLE, constraint="lagrangian")
    keys = [set(env.reset()[1]) for env in (plain, regret, soft)]
    assert keys[1] - keys[0] == {"regret", "regret_loss", "regret_standard_error"}
    assert keys[2] - keys[0] == {"penalty_lambda"}
    assert keys[0] <= keys[1] & keys[2]


def test_infos_share_no_memory():
    for kind in MADE:
        env = MADE[kind]()
        infos = play(env, highest)[2]
        for index, info in enumerate(infos):
            for other in infos[index + 1 :]:
                for key, value in info.items():
                    assert not (isinstance(value, np.ndarray) and np.shares_memory(value, other[key])), key


@pytest.mark.parametrize("kind", ["table", "project"])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_vectorised_infos_keep_one_layout(kind, mode):
    for made in (MADE[kind]().vectorize(3, mode), SyncVectorEnv([MADE[kind]] * 3, autoreset_mode=mode)):
        _, infos = made.reset(seed=0)
        first = layout(infos)
        for _ in range(20):
            _, _, terminated, _, infos = made.step(np.zeros(3, dtype=np.int64))
            final = infos.pop("final_info", None)
            for key in ("final_obs", "_final_obs", "_final_info"):
                infos.pop(key, None)
            assert {*map(str, layout(infos))} == {*map(str, first)}
            assert (final is not None) == (mode is AutoresetMode.SAME_STEP and terminated.any())
            if final is not None:
                assert {*map(str, layout(final))} == {*map(str, first)}
            if mode is AutoresetMode.DISABLED and terminated.all():
                made.reset()


def test_processes_hand_infos_on():
    envs = AsyncVectorEnv([MADE["table"]] * 2)
    try:
        _, begun = envs.reset(seed=0)
        for _ in range(4):
            *_, infos = envs.step(np.zeros(2, dtype=np.int64))
    finally:
        envs.close()
    assert {*map(str, layout(begun))} == {*map(str, layout(infos))}
    assert infos["accuracy"].min() > 0
    assert begun["accuracy"].tolist() == [-1, -1]


def test_continuous_actions_change_nothing_in_infos():
    env = ContinuousBits(MADE["table"]())
    _, begun = env.reset()
    for _ in range(4):
        *_, info = env.step(np.array([0.5], dtype=np.float32))
        assert layout(info) == layout(begun)
