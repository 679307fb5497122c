"""TorchRL: infos registered by themselves, rollouts, collectors, and masks."""

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data import Binary, Unbounded
from torchrl.envs import GymEnv, GymWrapper, TransformedEnv, default_info_dict_reader
from torchrl.envs.transforms import ActionMask
from torchrl.envs.utils import RandomPolicy, check_env_specs

from quantenv.envs.environment import QuantizationEnv
from tests.clients.plain import ACTIONS, DECISIONS, ID, replay

SPEC = [Binary(ACTIONS, dtype=torch.bool), Unbounded((), dtype=torch.int64), Unbounded((), dtype=torch.int64)]


class BoolMask(gymnasium.Wrapper):
    """Hands the mask on as truth values, as TorchRL's transform wants them."""

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return observation, info | {"action_mask": info["action_mask"].astype(bool)}

    def step(self, action):
        *answer, info = self.env.step(action)
        return *answer, info | {"action_mask": info["action_mask"].astype(bool)}


def actions_of(rollout):
    taken = rollout["action"]
    return (taken.argmax(dim=-1) if taken.shape[-1:] == (ACTIONS,) else taken).ravel().tolist()


@pytest.mark.parametrize("settings", [{}, {"regret": True}, {"constraint": "lagrangian"}])
def test_infos_register_themselves(settings):
    env = GymWrapper(gymnasium.make(ID, **settings)).auto_register_info_dict()
    assert isinstance(env, GymWrapper)  # nothing had to be primed: the first info has it all
    check_env_specs(env)
    rollout = env.rollout(100)
    _, total, end = replay(actions_of(rollout), **settings)
    assert rollout.shape == (DECISIONS,)
    assert rollout["next", "reward"].sum().item() == pytest.approx(total)
    assert rollout["next", "terminated"].ravel().tolist() == [False] * (DECISIONS - 1) + [True]
    assert not rollout["next", "truncated"].any()
    for key, value in end.items():
        np.testing.assert_allclose(rollout["next", key][-1].numpy(), value, err_msg=key)
    assert rollout["accuracy"].tolist() == [-1.0] * DECISIONS


def test_collectors_count_whole_episodes():
    env = GymEnv(ID).auto_register_info_dict()
    collector = Collector(
        env, RandomPolicy(env.action_spec), frames_per_batch=10 * DECISIONS, total_frames=20 * DECISIONS
    )
    try:
        batches = list(collector)
    finally:
        collector.shutdown()
    for batch in batches:
        done = batch["next", "done"].ravel()
        assert done.sum() == 10
        for episode in batch.reshape(-1).split(DECISIONS):
            _, total, end = replay(actions_of(episode))
            assert episode["next", "reward"].sum().item() == pytest.approx(total, rel=1e-6)
            assert episode["next", "accuracy"][-1].item() == end["accuracy"]


def test_masked_actions_are_never_closed():
    """As TorchRL's guide has it, the mask is part of the specs; a random policy then draws from open actions only."""
    env = GymWrapper(BoolMask(gymnasium.make(ID)), categorical_action_encoding=True)
    env.set_info_dict_reader(default_info_dict_reader(["action_mask", "corrected", "executed_action"], SPEC))
    masked = TransformedEnv(env, ActionMask())
    for _ in range(5):
        rollout = masked.rollout(100)
        assert rollout.shape == (DECISIONS,)
        assert not rollout["next", "corrected"].any()
        assert rollout["next", "executed_action"].tolist() == actions_of(rollout)


def test_other_kinds_register_too():
    env = QuantizationEnv("digits_table", constraint="project", pinned="first_last", budget=0.6, bits=(2, 4, 8))
    check_env_specs(GymWrapper(env).auto_register_info_dict())
