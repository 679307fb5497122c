"""Gymnasium's own wrappers, around one environment and around vectorised ones."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector

from quantenv.envs.vector import VectorTableEnv
from quantenv.envs.wrappers import ContinuousBits
from tests.clients.plain import ACTIONS, DECISIONS, FEATURES, ID, replay

ACTIONS_TAKEN = np.random.default_rng(0).integers(ACTIONS, size=(40, 3))


def play(env, actions):
    """Plays one episode."""
    observation, info = env.reset(seed=0)
    steps = [(observation, 0.0, False, False, info)]
    steps += [env.step(action) for action in actions]
    assert steps[-1][2]
    assert not steps[-1][3]
    return steps


#: What a wrapper makes of the plain observations, (T + 1, F).
OBSERVATIONS = {
    "flatten": (wrappers.FlattenObservation, lambda plain: plain),
    "reshape": (lambda env: wrappers.ReshapeObservation(env, (3, 5)), lambda plain: plain.reshape(-1, 3, 5)),
    "dtype": (lambda env: wrappers.DtypeObservation(env, np.float32), lambda plain: plain),
    "rescale": (
        lambda env: wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)),
        lambda plain: 2 * plain - 1,
    ),
    "transform": (
        lambda env: wrappers.TransformObservation(env, lambda seen: seen[:3], spaces.Box(0, 1, (3,))),
        lambda plain: plain[:, :3],
    ),
    "time": (
        lambda env: wrappers.TimeAwareObservation(env, normalize_time=True),
        lambda plain: np.column_stack([plain, np.arange(DECISIONS + 1) / DECISIONS]),
    ),
    "stack": (
        lambda env: wrappers.FrameStackObservation(env, 2),
        lambda plain: np.stack([plain[[0, *range(DECISIONS)]], plain], axis=1),
    ),
    "delay": (
        lambda env: wrappers.DelayObservation(env, 1),
        lambda plain: np.concatenate([np.zeros_like(plain[:1]), plain[:-1]]),
    ),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_wrappers_of_observations(name):
    wrap, expected = OBSERVATIONS[name]
    env, actions = wrap(gymnasium.make(ID)), ACTIONS_TAKEN[:DECISIONS, 0]
    steps = play(env, actions)
    plain, total, _ = replay(actions)
    seen = np.stack([np.asarray(step[0]) for step in steps])
    np.testing.assert_allclose(seen, expected(np.stack(plain)), atol=1e-6)
    assert all(step[0] in env.observation_space for step in steps)
    assert sum(step[1] for step in steps) == total


def test_running_normalisation_is_that_of_what_was_seen():
    actions = ACTIONS_TAKEN[:DECISIONS, 0]
    steps = play(wrappers.NormalizeObservation(gymnasium.make(ID)), actions)
    plain = np.stack(replay(actions)[0]).astype(np.float64)
    expected = (plain[-1] - plain.mean(axis=0)) / np.sqrt(plain.var(axis=0) + 1e-8)
    varied = plain.std(axis=0) > 1e-3
    np.testing.assert_allclose(steps[-1][0][varied], expected[varied], rtol=0.01, atol=0.01)


def test_wrappers_of_rewards_and_statistics():
    actions = ACTIONS_TAKEN[:DECISIONS, 1]
    _, total, _ = replay(actions)
    env = wrappers.RecordEpisodeStatistics(wrappers.TransformReward(gymnasium.make(ID), lambda reward: 10 * reward))
    end = play(wrappers.ClipReward(env, -0.01, 1.0), actions)[-1]
    assert end[1] == -0.01
    assert end[4]["episode"]["r"] == pytest.approx(10 * total)
    assert end[4]["episode"]["l"] == DECISIONS
    assert np.isfinite(play(wrappers.NormalizeReward(gymnasium.make(ID)), actions)[-1][1])


def test_autoreset_begins_after_the_end():
    env = wrappers.Autoreset(gymnasium.make(ID))
    env.reset()
    decisions = [int(env.step(0)[4]["decision"]) for _ in range(2 * DECISIONS)]
    assert decisions == [*range(1, DECISIONS + 1), 0, *range(1, DECISIONS)]


def test_actions_of_another_range():
    bits = ContinuousBits(gymnasium.make(ID))
    env = wrappers.ClipAction(wrappers.RescaleAction(bits, np.float32(-1), np.float32(1)))
    numbers = np.linspace(-1.5, 1.5, DECISIONS, dtype=np.float32)[:, None]
    _, total, _ = replay([bits.action((number.clip(-1, 1) + 1) / 2) for number in numbers])
    assert sum(step[1] for step in play(env, numbers)) == total


def test_pictures():
    made = gymnasium.make(ID, render_mode="rgb_array_list")  # adds RenderCollection
    play(made, ACTIONS_TAKEN[:DECISIONS, 0])
    assert len(made.render()) == DECISIONS + 1
    seen = wrappers.AddRenderObservation(gymnasium.make(ID, render_mode="rgb_array"))
    assert seen.reset()[0].dtype == np.uint8


# Around vectorised environments

KINDS = {
    "entry point": {"vectorization_mode": "vector_entry_point"},
    "sync": {"vectorization_mode": "sync"},
    "async": {"vectorization_mode": "async"},
}

VECTOR_WRAPPERS = {
    "normalised": vector.NormalizeObservation,
    "flatten": vector.FlattenObservation,
    "reshape": lambda envs: vector.ReshapeObservation(envs, (5, 3)),
    "rescale": lambda envs: vector.RescaleObservation(envs, np.float32(-1), np.float32(1)),
    "dtype": lambda envs: vector.DtypeObservation(envs, np.float32),
    "transform": lambda envs: vector.TransformObservation(envs, lambda seen: 2 * seen),
    "each": lambda envs: vector.VectorizeTransformObservation(
        envs, wrappers.TransformObservation, func=lambda seen: seen[:2], observation_space=spaces.Box(0, 1, (2,))
    ),
    "reward": lambda envs: vector.TransformReward(envs, lambda rewards: 3 * rewards),
    "clip": lambda envs: vector.ClipReward(envs, -0.1, 0.1),
    "each reward": lambda envs: vector.VectorizeTransformReward(envs, wrappers.ClipReward, min_reward=-0.1),
    "normalised reward": vector.NormalizeReward,
    "list": vector.DictInfoToList,
    "statistics": vector.RecordEpisodeStatistics,
}


def make(kind, mode, count=3):
    if kind == "entry point":
        return gymnasium.make_vec(ID, num_envs=count, **KINDS[kind], autoreset_mode=mode)
    return gymnasium.make_vec(ID, num_envs=count, **KINDS[kind], vector_kwargs={"autoreset_mode": mode})


def flat(value):
    """A step's results with everything as arrays, for comparison."""
    if isinstance(value, dict):  # but for times
        return {key: flat(each) for key, each in value.items() if key != "t"}
    if isinstance(value, list | tuple) or np.asarray(value).dtype.hasobject:
        return [flat(each) for each in value]
    return np.asarray(value)


@pytest.mark.parametrize("name", VECTOR_WRAPPERS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_wrappers_answer_alike_over_the_entry_point_and_over_copies(name, mode):
    try:
        theirs = VECTOR_WRAPPERS[name](make("sync", mode))
    except (AssertionError, ValueError) as refusal:  # Gymnasium's wrappers of observations do not know every mode
        with pytest.raises(type(refusal)):
            VECTOR_WRAPPERS[name](make("entry point", mode))
        return
    ours = VECTOR_WRAPPERS[name](make("entry point", mode))
    assert isinstance(ours.unwrapped, VectorTableEnv)
    assert ours.observation_space == theirs.observation_space
    np.testing.assert_equal(flat(ours.reset(seed=0)), flat(theirs.reset(seed=0)))
    for taken in ACTIONS_TAKEN[:20]:
        left, right = ours.step(taken), theirs.step(taken)
        np.testing.assert_equal(flat(left), flat(right))
        if mode is AutoresetMode.DISABLED and left[2].any():
            begin = {"options": {"reset_mask": left[2].copy()}}
            np.testing.assert_equal(flat(ours.reset(**begin)), flat(theirs.reset(**begin)))


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_plain_loop(kind):
    envs = vector.RecordEpisodeStatistics(make(kind, AutoresetMode.NEXT_STEP))
    try:
        envs.reset(seed=0)
        for episode in range(4):
            taken = ACTIONS_TAKEN[episode * (DECISIONS + 1) :][:DECISIONS]
            for actions in taken:
                *_, infos = envs.step(actions)
            for copy in range(3):
                assert infos["episode"]["l"][copy] == DECISIONS
                assert infos["episode"]["r"][copy] == pytest.approx(replay(taken[:, copy])[1])
            _, rewards, terminated, _, infos = envs.step(actions)
            assert not np.concatenate([rewards, terminated, infos["decision"]]).any()
    finally:
        envs.close()


def test_sizes_of_the_shipped_table():
    env = gymnasium.make(ID)
    assert env.observation_space.shape == (FEATURES,)
    assert (env.action_space.n, env.unwrapped.n_decisions) == (ACTIONS, DECISIONS)
