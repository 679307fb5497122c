"""Autoreset modes, partial resets and seeds: what copies answer is what Gymnasium's SyncVectorEnv answers."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from quantenv.core.errors import QuantenvError
from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.copies import Copies
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.haq import HAQEnv
from quantenv.envs.lockstep import LockstepEnv, vectorize
from quantenv.envs.vector import VectorTableEnv
from tests.envs.synthetic_env import make_env
from tests.envs.test_vector import equal
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(4, bits=(2, 3, 8))
COPIES = 5


def haq_code():
    evaluator = AdditiveEvaluator()
    switches = {"stale_first_observation": True, "inverted_flag": True, "pins": "over_budget"}
    return HAQEnv(None, evaluator=evaluator, switches=switches)


#: What is copied: as a table, and one by one.
MADE = {
    "table": lambda: QuantizationEnv(TABLE, constraint="reject", regret=True, budget=0.5),
    "projected": lambda: make_env(4, constraint="project", decisions="weights+activations", budget=0.5),
    "joint": lambda: make_env(4, decisions="joint", budget=0.5),
    "haq": haq_code,
}


def both(kind, mode):
    """The copies, and Gymnasium's."""
    vector = vectorize(MADE[kind](), COPIES, mode)
    assert isinstance(vector, VectorTableEnv if kind == "table" else LockstepEnv)
    return vector, SyncVectorEnv([MADE[kind]] * COPIES, autoreset_mode=mode)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_mode_is_that_of_gymnasium_in_step_and_out_of_step(kind, mode):
    vector, scalar = both(kind, mode)
    rng = np.random.default_rng(0)
    for left, right in zip(vector.reset(seed=3), scalar.reset(seed=3), strict=True):
        equal(left, right)
    ends, uneven = 0, 0
    ended = np.zeros(COPIES, dtype=bool)
    for step in range(60):
        mask = None
        if mode is AutoresetMode.DISABLED and ended.any():
            mask = ended
        elif step % 7 == 5:  # in the middle of episodes
            mask = rng.random(COPIES) < 0.4
        if mask is not None and mask.any():
            seed = [None, 4, None, 5, 6] if step % 2 else None
            ours = vector.reset(seed=seed, options={"reset_mask": mask.copy()})
            theirs = scalar.reset(seed=seed, options={"reset_mask": mask.copy()})
            for left, right in zip(ours, theirs, strict=True):
                equal(left, right)
            ended = ended & ~mask
        masks = vector.action_masks()
        assert masks.tolist() == [env.action_masks().tolist() for env in scalar.envs]
        actions = rng.integers(vector.single_action_space.n, size=COPIES)
        ours, theirs = vector.step(actions), scalar.step(actions)
        for part in range(5):
            equal(ours[part], theirs[part])
        ended = ours[2] if mode is AutoresetMode.DISABLED else np.zeros(COPIES, dtype=bool)
        ends += int(ours[2].sum())
        uneven += len(set(ours[4]["decision"].tolist())) > 1
        assert vector.evaluations == sum(env.evaluations for env in scalar.envs) == ends
    assert ends > 10
    assert uneven > 10


def test_what_is_returned_is_nobodys_elses():
    for kind in MADE:
        vector = vectorize(MADE[kind](), 3, "Disabled")
        observations, infos = vector.reset()
        first = observations.copy()
        observations[:] = 7
        infos["action_mask"][:] = 0
        again, _ = vector.reset(options={"reset_mask": np.array([True, False, False])})
        assert np.array_equal(again, first)
        assert vector.action_masks().any(axis=1).all()


@pytest.mark.parametrize("spelling", [lambda mode: mode, lambda mode: mode.value])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_make_vec_takes_the_mode_and_every_instance_tells_its_own(mode, spelling):
    made = gymnasium.make_vec(
        "quantenv/DigitsTable-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        task=TABLE,
        autoreset_mode=spelling(mode),
    )
    other = gymnasium.make_vec("quantenv/DigitsTable-v0", num_envs=2, task=TABLE)
    assert isinstance(made, VectorTableEnv)
    assert made.metadata["autoreset_mode"] is made.autoreset_mode is mode
    assert other.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP  # Gymnasium's default
    assert "autoreset_mode" not in Copies.metadata
    assert QuantizationEnv(TABLE).vectorize(2).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_by_default_an_episode_takes_one_step_more_and_none_is_lost():
    vector = gymnasium.make_vec("quantenv/DigitsTable-v0", num_envs=8, task=TABLE)
    vector.reset(seed=0)
    ends = sum(int(vector.step(np.zeros(8, dtype=np.int64))[2].sum()) for _ in range(50))
    assert ends == vector.evaluations == 8 * 10  # 4 decisions, and one step that begins


def test_disabled_episodes_must_be_begun():
    vector = VectorTableEnv(3, task=TABLE, autoreset_mode="Disabled")
    vector.reset()
    for _ in range(4):
        vector.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(ResetNeeded, match=r"copies \[0, 1, 2\] have ended"):
        vector.step(np.zeros(3, dtype=np.int64))
    vector.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ResetNeeded, match=r"copies \[1\] have ended"):
        vector.step(np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    "make",
    [lambda mode: VectorTableEnv(3, task=TABLE, autoreset_mode=mode), lambda mode: LockstepEnv(make_env(), 3, mode)],
)
@pytest.mark.parametrize("mode", ["same_step", "NEXT_STEP", None, True, 1, ["SameStep"], np.array([1, 2])])
def test_modes_that_do_not_exist_are_refused(make, mode):
    with pytest.raises(QuantenvError, match=r"autoreset_mode is .*'NextStep', 'SameStep', 'Disabled'"):
        make(mode)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(3, dtype=bool),
        np.ones(2, dtype=bool),
        np.ones((3, 1), dtype=bool),
        np.array([1, 0, 1]),
        np.array([1.0, 0.0, 1.0]),
        "all",
        None,
        True,
        [[True], [True, False], True],
        {"a": True},
    ],
)
def test_masks_of_resets_are_checked(mask):
    vector = VectorTableEnv(3, task=TABLE)
    vector.reset()
    with pytest.raises(QuantenvError, match=r"reset_mask is .*truth values, one for each copy"):
        vector.reset(options={"reset_mask": mask})
    assert vector.action_masks().shape == (3, 3)


def test_the_first_reset_is_of_all_copies():
    vector = VectorTableEnv(3, task=TABLE)
    with pytest.raises(ResetNeeded, match="leaves out"):
        vector.reset(options={"reset_mask": np.array([True, False, False])})
    vector.reset(options={"reset_mask": [True, True, True]})


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, [0, 1], [0, 1, -2], [0, 1, "a"], {}, np.array([1.0, 2.0, 3.0])])
def test_seeds_are_checked(seed):
    with pytest.raises(QuantenvError, match="seed"):
        VectorTableEnv(3, task=TABLE).reset(seed=seed)


@pytest.mark.parametrize("seed", [None, 0, 2**70, np.int64(3), np.array([1, 2, 3]), (1, None, 3), [None] * 3])
def test_seeds_of_many_spellings_are_taken(seed):
    VectorTableEnv(3, task=TABLE).reset(seed=seed)
    LockstepEnv(make_env(), 3).reset(seed=seed)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None])
def test_numbers_of_copies_are_checked(count):
    for make in (lambda: VectorTableEnv(count, task=TABLE), lambda: make_env().vectorize(count)):
        with pytest.raises(QuantenvError, match=r"num_envs is .*at least 1"):
            make()


def test_copies_of_a_sweep_go_their_own_ways_in_every_mode():
    for mode in AutoresetMode:
        vector = BudgetSweepEnv(TABLE, levels=8).vectorize(4, mode)
        _, infos = vector.reset(seed=0)
        assert len(set(infos["budget_size"].tolist())) > 1
        _, kept = vector.reset(options={"reset_mask": np.array([True, False, False, False]), "level": 7})
        assert kept["budget_size"][0] == vector.single.level_limits[-1]
        assert kept["budget_size"][1:].tolist() == [0, 0, 0]
        assert [each.level for each in vector.copies][1:] == [
            int(np.searchsorted(vector.single.level_limits, limit)) for limit in infos["budget_size"][1:]
        ]
