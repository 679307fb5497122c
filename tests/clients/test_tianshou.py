"""Tianshou: a collector, a replay buffer and masked DQN."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net

from tests.clients.plain import ACTIONS, DECISIONS, FEATURES, ID, replay

COPIES, EPISODES = 4, 16


class Masked(gymnasium.Wrapper):
    """Shows the mask beside the observation, as Tianshou's policies want it."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict(obs=env.observation_space, mask=spaces.MultiBinary(ACTIONS))

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return {"obs": observation, "mask": info["action_mask"].astype(bool)}, info

    def step(self, action):
        observation, *answer, info = self.env.step(action)
        return {"obs": observation, "mask": info["action_mask"].astype(bool)}, *answer, info


@pytest.mark.parametrize("masked", [True, False])
def test_collected_episodes_are_those_of_the_plain_loop(masked):
    wrap = Masked if masked else gymnasium.Wrapper
    envs = DummyVectorEnv([lambda: wrap(gymnasium.make(ID)) for _ in range(COPIES)])
    env = gymnasium.make(ID)
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=(FEATURES,), action_shape=ACTIONS, hidden_sizes=[16]),
        action_space=env.action_space,
        observation_space=env.observation_space,
        eps_training=0.5,
        eps_inference=0.5,
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3))
    buffer = VectorReplayBuffer(EPISODES * DECISIONS, COPIES)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset(gym_reset_kwargs={"seed": 0})
    stats = collector.collect(n_episode=EPISODES)
    assert (stats.n_collected_episodes, stats.n_collected_steps) == (EPISODES, EPISODES * DECISIONS)
    assert stats.lens.tolist() == [DECISIONS] * EPISODES
    assert not buffer.truncated[: len(buffer)].any()
    ends = np.flatnonzero(buffer.done)
    assert len(ends) == EPISODES
    for end in ends:
        steps = np.arange(end - DECISIONS + 1, end + 1)
        _, total, last = replay(buffer.act[steps])
        assert buffer.rew[steps].sum() == pytest.approx(total)
        assert buffer.info.accuracy[end] == last["accuracy"]
        assert buffer.info.bits[end].tolist() == last["bits"].tolist()
    assert sorted(stats.returns) == pytest.approx(sorted(buffer.rew[ends]))
    assert (buffer.info.corrected.sum() == 0) == masked
