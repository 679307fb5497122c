"""Every main learner beats random search, at the same evaluations, on a task whose optimum is known."""

from functools import cache

import numpy as np
import pytest

from agents import make_agent
from tests.agents.searches import MAIN, best_reward, make_env

EVALUATIONS = 200
SEEDS = range(2)
TASK = {"count": 6, "budget": 0.4}
#: Learners whose own networks, of 300 hidden units, would take three times as long.
NARROW = {"ddpg": {"hidden": 64}, "reinforce": {"hidden": 64}}


@cache
def _regrets(name: str) -> list[float]:
    """Accuracy lost against the optimum by the best of all evaluations, for each seed."""
    best, regrets = best_reward(make_env(**TASK)), []
    for seed in SEEDS:
        env = make_env(**TASK)
        make_agent(name, env, seed, NARROW.get(name)).learn(EVALUATIONS, lambda metrics: None)
        regrets.append(best - max(env.rewards))
    return regrets


@pytest.mark.parametrize("name", [*MAIN, "random"])
def test_nothing_beats_the_brute_force_optimum(name):
    assert min(_regrets(name)) >= -1e-4  # accuracies are rounded to one of 10,000 samples


@pytest.mark.parametrize("name", MAIN)
def test_learner_beats_random_search(name):
    assert np.mean(_regrets(name)) < np.mean(_regrets("random"))
