"""Gymnasium's wrappers that hand tensors of torch on; they need array-api-compat."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import NumpyToTorch
from gymnasium.wrappers.vector import NumpyToTorch as VectorToTorch

from tests.clients.plain import ACTIONS, DECISIONS, ID, replay

TAKEN = np.random.default_rng(0).integers(ACTIONS, size=(20, 3))


def test_one_environment():
    env = NumpyToTorch(gymnasium.make(ID))
    observation, info = env.reset()
    assert info["accuracy"] == -1
    for action in torch.as_tensor(TAKEN[:DECISIONS, 0]):
        observation, reward, terminated, truncated, info = env.step(action)
    plain, total, end = replay(TAKEN[:DECISIONS, 0])
    assert (terminated, truncated, reward) == (True, False, pytest.approx(total))
    assert torch.equal(observation, torch.as_tensor(plain[-1]))
    assert info["bits"].tolist() == end["bits"].tolist()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_vectorised_ones(mode):
    plain = gymnasium.make_vec(ID, num_envs=3, autoreset_mode=mode)
    envs = VectorToTorch(gymnasium.make_vec(ID, num_envs=3, autoreset_mode=mode))
    for made in (plain, envs):
        made.reset(seed=0)
    for taken in TAKEN[:DECISIONS]:
        right, left = plain.step(taken), envs.step(torch.as_tensor(taken))
        for ours, theirs in zip(left[:4], right[:4], strict=True):
            assert isinstance(ours, torch.Tensor)
            np.testing.assert_array_equal(ours.numpy(), theirs)
    assert left[2].all()
    np.testing.assert_array_equal(left[4]["bits"].numpy(), right[4]["bits"])
