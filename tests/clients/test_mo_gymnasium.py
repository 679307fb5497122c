"""MO-Gymnasium: its `make`, wrappers and vectorised environments."""

import warnings

import mo_gymnasium
import numpy as np
import pytest
from mo_gymnasium.wrappers import LinearReward, MOClipReward, MONormalizeReward, MORecordEpisodeStatistics
from mo_gymnasium.wrappers.vector import MORecordEpisodeStatistics as VectorStatistics
from mo_gymnasium.wrappers.vector import MOSyncVectorEnv

from quantenv.envs.environment import QuantizationEnv
from tests.envs.synthetic_env import play

ID = "quantenv/MODigitsTable-v0"


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
