import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.envs.wrappers import ContinuousBits
from tests.envs.synthetic_env import make_env


def bits_of(wrapped, value):
    return wrapped.unwrapped.bits[wrapped.action(np.array([value], dtype=np.float32))]


def test_every_option_has_an_interval_of_equal_length_and_none_is_out_of_range():
    wrapped = ContinuousBits(make_env(bits=range(2, 9)))
    chosen = [bits_of(wrapped, value) for value in np.linspace(0, 1, 7001)]
    assert chosen == sorted(chosen)
    assert set(chosen) == set(range(2, 9))
    assert np.bincount(chosen)[2:] == pytest.approx([1000] * 7, abs=2)


@settings(deadline=None)
@given(
    bits=st.sets(st.integers(1, 8), min_size=1),
    value=st.floats(-1e6, 1e6),
)
def test_bits_are_always_among_the_options(bits, value):
    wrapped = ContinuousBits(make_env(2, bits=tuple(bits), budget=1.0))
    least, most = min(bits), max(bits)
    rounded = min(max(round(least - 0.5 + float(np.float32(value)) * (most - least + 1)), least), most)
    assert bits_of(wrapped, value) == min(sorted(bits), key=lambda bit: (abs(bit - rounded), bit))


def test_the_ends_of_odd_ranges_do_not_round_outwards():
    wrapped = ContinuousBits(make_env(bits=(1, 2, 3), budget=1.0))
    assert bits_of(wrapped, 0.0) == 1  # round(0.5) is 0 bits
    assert bits_of(wrapped, 1.0) == 3  # round(3.5) is 4 bits


@settings(deadline=None)
@given(bits=st.sets(st.integers(1, 8), min_size=1), joint=st.booleans())
def test_executed_actions_survive_the_way_back(bits, joint):
    env = make_env(2, bits=tuple(bits), decisions="joint" if joint else "weights", budget=1.0)
    wrapped = ContinuousBits(env)
    actions = np.arange(env.action_space.n)
    continuous = wrapped.continuous(actions)
    assert continuous.dtype == np.float32
    assert continuous.shape == (len(actions), 2 if joint else 1)
    assert [wrapped.action(row) for row in continuous] == actions.tolist()


def test_centres_by_hand():
    assert ContinuousBits(make_env(bits=range(2, 9))).continuous(np.array([0, 6]))[:, 0] == pytest.approx(
        [0.5 / 7, 6.5 / 7]
    )
    gaps = ContinuousBits(make_env(bits=(2, 4, 8)))  # 2, 3 -> 2; 4, 5, 6 -> 4; 7, 8 -> 8
    assert gaps.continuous(np.array([0, 1, 2]))[:, 0] == pytest.approx([1 / 7, 3.5 / 7, 6 / 7])


@pytest.mark.parametrize("action", [0.5, [0.5, 0.5], [np.nan], [np.inf]])
def test_bad_actions_are_refused(action):
    with pytest.raises(QuantenvError, match="Continuous action"):
        ContinuousBits(make_env()).action(np.array(action))


@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_many_actions_at_once_are_those_one_by_one(decisions):
    wrapped = ContinuousBits(make_env(2, bits=(2, 3, 8), decisions=decisions, budget=1.0))
    numbers = np.random.default_rng(0).uniform(-0.1, 1.1, (50, *wrapped.action_space.shape))
    assert wrapped.actions(numbers).tolist() == [wrapped.action(row) for row in numbers]
    with pytest.raises(QuantenvError, match="Continuous action"):
        wrapped.actions(numbers[0])


def test_it_reaches_the_environment_through_other_wrappers():
    wrapped = ContinuousBits(RecordEpisodeStatistics(make_env()))
    _, info = wrapped.reset(seed=0)
    assert wrapped.get_wrapper_attr("action_masks")().tolist() == info["action_mask"].astype(bool).tolist()
    terminated = False
    while not terminated:
        _, _, terminated, _, info = wrapped.step(wrapped.action_space.sample())
    replayed = [wrapped.action(row) for row in wrapped.continuous(info["executed_actions"])]
    assert replayed == info["executed_actions"].tolist()


def test_it_refuses_other_environments():
    with pytest.raises(QuantenvError, match="wraps a QuantizationEnv"):
        ContinuousBits(gymnasium.make("CartPole-v1"))
