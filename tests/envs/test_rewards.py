import math

import numpy as np
import pytest

from quantenv.core.errors import QuantenvError
from quantenv.envs.rewards import make_reward

UNITS = {"size": 2.0, "latency": 10.0}


def test_accuracy_reward_is_the_scaled_loss_of_accuracy():
    reward = make_reward("accuracy", 0.1, None, 0.96, UNITS)
    assert reward(0.90, np.array([1.0, 1.0])) == pytest.approx(-0.006)


def test_weighted_reward_by_hand():
    reward = make_reward("weighted", 2.0, {"accuracy": 3.0, "latency": 0.5}, 0.96, UNITS)
    assert reward(0.9, np.array([100.0, 4.0])) == pytest.approx(2.0 * (3.0 * 0.9 - 0.5 * 4.0 / 10.0))


def test_accuracy_counts_once_unless_weighted():
    assert make_reward("weighted", 1.0, {"size": 1}, 0.96, UNITS)(0.9, np.array([1.0, 5.0])) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acuracy", 1.0, None), "Did you mean 'accuracy'"),
        (("accuracy", 0.0, None), "reward_scale"),
        (("accuracy", math.nan, None), "reward_scale"),
        (("accuracy", 1.0, {"size": 1.0}), "no effect"),
        (("weighted", 1.0, None), "needs reward_weights"),
        (("weighted", 1.0, {"latncy": 1.0}), "Did you mean 'latency'"),
        (("weighted", 1.0, {"size": -1.0}), ">= 0"),
        (("weighted", 1.0, {"size": math.inf}), "finite"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(QuantenvError, match=message):
        make_reward(*arguments, 0.96, UNITS)
