"""Minari: episodes recorded with their infos, read back, and their environment made again."""

import gymnasium
import minari
import numpy as np

from tests.clients.plain import DECISIONS, ID, replay


def test_recorded_episodes_are_what_was_played(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gymnasium.make(ID, regret=True), record_infos=True)
    rng = np.random.default_rng(0)
    ends, taken = [], []
    for episode in range(6):
        _, info = env.reset(seed=episode)
        taken.append([])
        terminated = False
        while not terminated:
            taken[-1].append(int(rng.choice(np.flatnonzero(info["action_mask"]))))
            _, _, terminated, _, info = env.step(taken[-1][-1])
        ends.append(info)
    env.create_dataset("quantenv/digits-v0", eval_env=ID)

    data = minari.load_dataset("quantenv/digits-v0")
    assert (data.total_episodes, data.total_steps) == (6, 6 * DECISIONS)
    for episode, actions, end in zip(data.iterate_episodes(), taken, ends, strict=True):
        observations, total, last = replay(actions, regret=True)
        assert episode.actions.tolist() == actions
        np.testing.assert_array_equal(episode.observations, observations)
        assert episode.rewards.sum() == total
        assert episode.terminations.tolist() == [False] * (DECISIONS - 1) + [True]
        assert not episode.truncations.any()
        assert episode.infos.keys() == end.keys() == last.keys()
        for key in ("accuracy", "loss", "regret", "cost_size", "budget_size", "feasible", "bits", "executed_actions"):
            assert episode.infos[key].shape == (DECISIONS + 1, *np.shape(last[key]))
            np.testing.assert_array_equal(episode.infos[key][-1], last[key])
        assert episode.infos["accuracy"][:-1].tolist() == [-1.0] * DECISIONS
        assert not episode.infos["corrected"][1:].any()
    assert data.recover_environment().unwrapped.n_decisions == DECISIONS
