import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.vector import VectorTableEnv
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(5, bits=(2, 3, 5, 8))
TIED = synthetic_table(5, bits=(2, 4, 8), groups=[[0, 3], [1], [2, 4]])
PINNED = {"layer0": 8, "layer3": 8}

SETTINGS = [
    {"task": TABLE, "observation": observation, "constraint": constraint}
    for observation, constraint in itertools.product(("haq", "blog", "full"), ("mask", "reject"))
] + [
    {"task": TABLE, "regret": True, "constraint": "reject", "budget": 0.5},
    {"task": TABLE, "regret": True, "budget": {"size": 0.4, "latency": 0.8}, "bits": (3, 8)},
    {"task": TABLE, "reward": "weighted", "reward_weights": {"accuracy": 1.0, "size": 0.1, "energy": 0.3}},
    {"task": TIED, "regret": True, "budget": 0.6},
    {"task": TIED, "pinned": PINNED, "budget": 0.9, "constraint": "reject"},
]


def equal(left, right, where=""):
    """Whether results of two vectorised environments are the same, keys, types and last digits."""
    if isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in right:
            equal(left[key], right[key], f"{where}.{key}")
        return
    assert isinstance(left, np.ndarray)
    assert left.dtype == right.dtype, where
    if left.dtype == object:
        assert len(left) == len(right)
        for mine, other in zip(left, right, strict=True):
            assert mine is other is None or mine.dtype == other.dtype == np.float32, where
            assert np.array_equal(mine, other), where
    else:
        assert np.array_equal(left, right), where


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_it_is_equal_to_scalar_environments_in_lock_step(settings, mode):
    vector = VectorTableEnv(7, autoreset_mode=mode, **settings)
    scalar = SyncVectorEnv([lambda: QuantizationEnv(**settings)] * 7, autoreset_mode=mode)
    assert vector.metadata["autoreset_mode"] == scalar.metadata["autoreset_mode"]
    assert vector.single_observation_space == scalar.single_observation_space
    assert vector.observation_space == scalar.observation_space
    assert vector.action_space == scalar.action_space
    rng = np.random.default_rng(0)
    ours, theirs = vector.reset(seed=1), scalar.reset(seed=1)
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])
    ends = 0
    for step in range(40):
        if step == 23:  # in mid-episode
            for left, right in zip(vector.reset(seed=2), scalar.reset(seed=2), strict=True):
                equal(left, right)
        masks = vector.action_masks()
        assert masks.tolist() == [env.action_masks().tolist() for env in scalar.envs]
        actions = rng.integers(vector.single_action_space.n, size=7)
        ours, theirs = vector.step(actions), scalar.step(actions)
        for part in range(5):
            equal(ours[part], theirs[part])
        ends += int(ours[2].all())
        assert vector.evaluations == sum(env.evaluations for env in scalar.envs)
    assert ends > 5


def test_what_it_returns_is_not_changed_afterwards():
    vector = VectorTableEnv(3, task=TABLE)
    observations, infos = vector.reset()
    for _ in range(12):
        kept = observations.copy(), {key: value.copy() for key, value in infos.items() if key == "action_mask"}
        observations_before, mask_before = observations, infos["action_mask"]
        observations, _, _, _, infos = vector.step(np.array([3, 0, 1]))
        assert np.array_equal(observations_before, kept[0])
        assert np.array_equal(mask_before, kept[1]["action_mask"])
        infos["action_mask"][:] = 0  # nor does it listen to what is done to it
        assert vector.action_masks().any(axis=1).all()


def test_make_vec_takes_it_for_table_ids():
    vector = gymnasium.make_vec("quantenv/DigitsTable-v0", num_envs=4, task=TABLE)
    assert isinstance(vector, VectorTableEnv)
    vector.reset(seed=0)
    for _ in range(5):
        *_, infos = vector.step(vector.action_space.sample())
    assert infos["feasible"].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constraint": "project"}, "no constraint 'project': use mask or reject"),
        ({"constraint": "lagrangian"}, "no constraint 'lagrangian'"),
        ({"decisions": "joint"}, "decisions='weights'"),
        ({"render_mode": "ansi"}, "does not render"),
        ({"num_envs": 0}, "at least 1"),
    ],
)
def test_what_it_does_not_do_is_refused(settings, message):
    with pytest.raises(QuantenvError, match=message):
        VectorTableEnv(**{"num_envs": 2, "task": TABLE, **settings})


def test_it_needs_a_table():
    from tests.synthetic import AdditiveEvaluator

    with pytest.raises(QuantenvError, match="use a table task"):
        VectorTableEnv(2, task=None, evaluator=AdditiveEvaluator(), observation="haq")


@pytest.mark.parametrize("actions", [[0, 1], [0, 1, 4], [0, -1, 1], [0.0, 1.0, 2.0], [[0, 1, 2]], ["a", "b", "c"]])
def test_actions_outside_the_space_are_errors(actions):
    vector = VectorTableEnv(3, task=TABLE)
    with pytest.raises(ResetNeeded):
        vector.step(np.array([0, 0, 0]))
    with pytest.raises(ResetNeeded):
        vector.action_masks()
    vector.reset()
    with pytest.raises(QuantenvError, match="expected 3 whole numbers from 0 to 3"):
        vector.step(np.array(actions))
