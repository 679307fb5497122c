"""Every main learner beats random search, at the same evaluations, on a task whose optimum is known."""

from functools import cache

import numpy as np
import pytest

from tests.agents.searches import MAIN, best_reward, make_env, search

EVALUATIONS = 200
SEEDS = range(3)
TASK = {"count": 6, "budget": 0.4}


@cache
def _regrets(name: str) -> list[float]:
    """Accuracy lost against the optimum by the best of all evaluations, for each seed."""
    best = best_reward(make_env(**TASK))
    searches = [search(name, EVALUATIONS, seed=seed, small=False, **TASK) for seed in SEEDS]
    return [best - max(env.rewards) for env in searches]


@pytest.mark.parametrize("name", [*MAIN, "random"])
def test_nothing_beats_the_brute_force_optimum(name):
    assert min(_regrets(name)) >= -1e-4  # accuracies are rounded to one of 10,000 samples


@pytest.mark.parametrize("name", MAIN)
def test_learner_beats_random_search(name):
    assert np.mean(_regrets(name)) < np.mean(_regrets("random"))
