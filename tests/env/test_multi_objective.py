import subprocess
import sys
import warnings

import gymnasium
import mo_gymnasium
import numpy as np
import pytest
from mo_gymnasium.wrappers import LinearReward, MOClipReward, MONormalizeReward, MORecordEpisodeStatistics
from mo_gymnasium.wrappers.vector import MORecordEpisodeStatistics as VectorStatistics
from mo_gymnasium.wrappers.vector import MOSyncVectorEnv

from quantenv.env.environment import QuantizationEnv
from quantenv.env.multi_objective import MultiObjectiveEnv
from quantenv.errors import QuantenvError
from tests.env.synthetic_env import play
from tests.synthetic import AdditiveEvaluator

ID = "quantenv/MODigitsTable-v0"


def make(**options):
    evaluator = AdditiveEvaluator()
    return MultiObjectiveEnv(None, evaluator=evaluator, sensitivity=evaluator.sensitivity, **options)


def test_rewards_are_accuracy_and_shares_of_cost():
    env = make(objectives=("size", "accuracy", "latency"))
    _, rewards, infos = play(env, [0, 3, 1, 2, 6, 5])
    assert [reward.tolist() for reward in rewards[:-1]] == [[0, 0, 0]] * 5
    info = infos[-1]
    sizes = np.array([layer.params for layer in env.layers])
    share = (sizes * (np.array([0, 3, 1, 2, 6, 5]) + 2) / 8).sum() / sizes.sum()
    latency = info["cost_latency"] / env.tables["latency"].reference
    assert rewards[-1] == pytest.approx([-share, info["accuracy"], -latency], rel=1e-6)
    assert rewards[-1] in env.reward_space
    assert rewards[-1].dtype == env.reward_space.dtype == np.float32
    assert (env.reward_dim, env.reward_space.shape) == (3, (3,))


def test_nothing_is_bounded_unless_asked_for():
    env = make()
    env.reset()
    assert env.action_masks().all()
    assert play(env, [6] * 6)[2][-1]["feasible"] == 1
    assert not make(budget=0.3).reset()[1]["action_mask"].all()


def test_the_scalarised_reward_is_that_of_the_weighted_environment():
    env = mo_gymnasium.make(ID)
    weighted = QuantizationEnv(
        "digits_table", budget=1.0, reward="weighted", reward_weights={"accuracy": 0.7, "size": 0.3}
    )
    linear = LinearReward(env, weight=np.array([0.7, 0.3]))
    for actions in ([0] * 8, [3] * 8, [3, 2, 1, 0, 1, 2, 3, 0]):
        rewards, expected = (play(each, actions)[1] for each in (linear, weighted))
        assert sum(rewards) == pytest.approx(sum(expected), rel=1e-6)
    assert linear.step is not None


def test_mo_gymnasiums_wrappers_take_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = mo_gymnasium.make(ID)
    recorded = MORecordEpisodeStatistics(env, gamma=1.0)
    _, rewards, infos = play(recorded, [3] * 8)
    assert infos[-1]["episode"]["r"] == pytest.approx(sum(rewards))
    assert infos[-1]["episode"]["l"] == 8
    clipped = play(MOClipReward(mo_gymnasium.make(ID), 1, -0.5, 0), [3] * 8)[1][-1]
    assert clipped.tolist() == pytest.approx([rewards[-1][0], -0.5])
    normalized = play(MONormalizeReward(mo_gymnasium.make(ID), idx=0), [3] * 8)[1][-1]
    assert normalized[1] == rewards[-1][1]
    assert normalized[0] != rewards[-1][0]


def test_mo_gymnasiums_vector_environment_takes_it():
    envs = VectorStatistics(MOSyncVectorEnv([lambda: mo_gymnasium.make(ID) for _ in range(3)]))
    envs.reset(seed=0)
    for _ in range(8):
        _, rewards, terminated, _, infos = envs.step(np.array([0, 1, 3]))
    assert terminated.all()
    assert rewards.shape == (3, 2)
    assert infos["episode"]["r"] == pytest.approx(rewards)
    single = [play(mo_gymnasium.make(ID), [action] * 8)[1][-1] for action in (0, 1, 3)]
    assert rewards == pytest.approx(np.stack(single))
    envs.close()


def test_copies_in_lockstep_have_vector_rewards():
    copies = make().vectorize(2)
    copies.reset(seed=0)
    for decision in range(6):
        _, rewards, _, _, _ = copies.step(np.array([0, 6]))
        assert rewards.shape == (2, 2)
        assert rewards.any() == (decision == 5)
    expected = [play(make(), [action] * 6)[1][-1] for action in (0, 6)]
    assert rewards == pytest.approx(np.stack(expected))


def test_it_needs_no_mo_gymnasium():
    code = (
        "import sys, gymnasium, quantenv; sys.modules['mo_gymnasium'] = None; "
        f"env = gymnasium.make('{ID}'); env.reset(); assert env.step(0)[1].shape == (2,)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert gymnasium.spec(ID).disable_env_checker


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ("accuracy", "sise")}, "Did you mean 'size'"),
        ({"objectives": ("size", "size")}, "each of them once"),
        ({"objectives": ()}, "at least one"),
        ({"reward": "weighted"}, "vector"),
        ({"constraint": "lagrangian", "budget": 0.9}, "needs a scalar reward"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(QuantenvError, match=message):
        make(**options)
