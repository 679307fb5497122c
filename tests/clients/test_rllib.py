"""RLlib's runners over copies stepped one by one and over the vectorised environment, which must agree."""

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from quantenv.envs.vector import VectorTableEnv
from tests.clients.plain import DECISIONS, ID, replay

COPIES, STEPS = 8, 1024


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_runners_hand_on_whole_episodes(mode):
    config = (
        PPOConfig()
        .environment(ID)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=COPIES, gym_env_vectorize_mode=mode)
    )
    runner = SingleAgentEnvRunner(config=config)
    try:
        assert isinstance(runner.env.unwrapped, VectorTableEnv) == (mode == "vector_entry_point")
        episodes = runner.sample(num_timesteps=STEPS, random_actions=True)
    finally:
        runner.stop()
    assert len(episodes) == STEPS // DECISIONS
    for episode in episodes:
        assert (len(episode), episode.is_terminated, episode.is_truncated) == (DECISIONS, True, False)
        observations, total, last = replay(episode.get_actions())
        assert episode.get_return() == pytest.approx(total)
        assert episode.get_infos(-1)["accuracy"] == last["accuracy"]
        assert episode.get_infos(-1)["executed_actions"].tolist() == last["executed_actions"].tolist()
        for seen, expected in zip(episode.get_observations(), observations, strict=True):
            assert (seen == expected).all()
