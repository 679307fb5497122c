import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.base import vectorize
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.lockstep import LockstepEnv
from quantenv.envs.vector import VectorTableEnv
from tests.envs.test_vector import equal
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(4, bits=(2, 3, 8))
SETTINGS = [
    {"decisions": decisions, "constraint": constraint, "budget": 0.5}
    for decisions in ("weights", "weights+activations", "joint")
    for constraint in ("mask", "project", "reject")
]


def make(**settings):
    evaluator = AdditiveEvaluator()
    return QuantizationEnv(None, evaluator=evaluator, sensitivity=evaluator.sensitivity, **settings)


class Batches:
    """Remembers how many allocations were asked for at once."""

    def __init__(self):
        self.inner = AdditiveEvaluator()
        self.layers, self.reference, self.identity = self.inner.layers, self.inner.reference, self.inner.identity
        self.sizes = []

    def evaluate(self, allocations, split="search"):
        self.sizes.append(len(allocations))
        return self.inner.evaluate(allocations, split)


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_equal_to_scalar_environments_in_lock_step(settings):
    single = make(**settings)
    vector = single.vectorize(5)
    assert isinstance(vector, LockstepEnv)
    scalar = SyncVectorEnv([lambda: make(**settings)] * 5, autoreset_mode=AutoresetMode.SAME_STEP)
    assert vector.observation_space == scalar.observation_space
    assert vector.action_space == scalar.action_space
    rng = np.random.default_rng(0)
    for left, right in zip(vector.reset(seed=1), scalar.reset(seed=1), strict=True):
        equal(left, right)
    ends = 0
    for step in range(5 * single.n_decisions):
        if step == single.n_decisions + 2:  # in mid-episode
            for left, right in zip(vector.reset(seed=2), scalar.reset(seed=2), strict=True):
                equal(left, right)
        assert vector.action_masks().tolist() == [env.action_masks().tolist() for env in scalar.envs]
        actions = rng.integers(vector.single_action_space.n, size=5)
        ours, theirs = vector.step(actions), scalar.step(actions)
        for part in range(5):
            equal(ours[part], theirs[part])
        ends += int(ours[2].all())
    assert ends >= 3
    assert vector.evaluations == single.evaluations == 5 * ends


def test_a_constraint_learns_from_one_copy_after_the_other():
    settings = {"constraint": "lagrangian", "budget": 0.3, "constraint_options": {"learning_rate": 0.5}}
    vector, scalar = make(**settings).vectorize(4), make(**settings)
    actions = np.random.default_rng(0).integers(7, size=(3, scalar.n_decisions, 4))  # (batch, T, copies)
    vector.reset(seed=0)
    scalar.reset(seed=0)
    for batch in actions:
        for chosen in batch:
            _, rewards, _, _, infos = vector.step(chosen)
        for copy in range(4):
            scalar.reset()
            for chosen in batch:
                _, reward, _, _, info = scalar.step(int(chosen[copy]))
            assert rewards[copy] == reward
            assert infos["final_info"]["penalty_lambda"][copy] == info["penalty_lambda"]


def test_finished_allocations_are_evaluated_in_one_batch():
    evaluator = Batches()
    env = QuantizationEnv(None, evaluator=evaluator, sensitivity=evaluator.inner.sensitivity)
    vector = env.vectorize(6)
    vector.reset()
    for _ in range(2 * env.n_decisions):
        vector.step(np.zeros(6, dtype=np.int64))
    assert evaluator.sizes == [6, 6]


def test_an_episode_running_in_the_environment_itself_goes_on():
    env = make()
    env.reset()
    env.step(3)
    vector = env.vectorize(2)
    vector.reset()
    for _ in range(env.n_decisions):
        vector.step(np.array([1, 2]))
    _, _, terminated, _, info = env.step(0)
    assert info["decision"] == 2
    assert not terminated


def test_a_table_is_looked_up_without_copies():
    env = QuantizationEnv(TABLE)
    vector = env.vectorize(3)
    assert isinstance(vector, VectorTableEnv)
    vector.reset()
    for _ in range(env.n_decisions):
        vector.step(np.array([0, 1, 2]))
    assert env.evaluations == vector.evaluations == 3
    assert isinstance(QuantizationEnv(TABLE, constraint="project").vectorize(3), LockstepEnv)


def test_settings_beside_an_environment_to_copy_are_refused():
    with pytest.raises(QuantenvError, match="budget"):
        VectorTableEnv(2, single=QuantizationEnv(TABLE), budget=0.5)


@pytest.mark.parametrize("actions", [[0, 0], [0, 0, 7], [0, -1, 0], [0.0, 1.0, 0.0]])
def test_wrong_actions_are_refused(actions):
    vector = make().vectorize(3)
    with pytest.raises(ResetNeeded):
        vector.step(np.zeros(3, dtype=np.int64))
    vector.reset()
    with pytest.raises(QuantenvError, match="3 whole numbers from 0 to 6"):
        vector.step(np.array(actions))


def test_there_is_at_least_one_copy():
    with pytest.raises(QuantenvError, match="at least 1"):
        make().vectorize(0)


def test_agents_copy_through_gymnasiums_own_wrappers_but_not_around_others():
    evaluator = AdditiveEvaluator()
    env = gymnasium.make("quantenv/HAQ-v0", task=None, evaluator=evaluator, sensitivity=evaluator.sensitivity)
    assert vectorize(env, 2).num_envs == 2
    with pytest.raises(QuantenvError, match="TransformReward has no method vectorize"):
        vectorize(gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward), 2)
