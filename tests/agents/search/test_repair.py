import numpy as np
import pytest

from agents.search.choices import Choices
from agents.search.problem import Problem
from agents.search.repair import Repair, random_picks
from tests.agents.searches import make_env

JOINT = {"decisions": "joint", "metric": ["size", "bops"], "budget": [0.6, 0.3]}


@pytest.mark.parametrize("options", [{"budget": 0.3}, JOINT])
def test_repaired_picks_are_feasible_and_no_higher(options):
    choices = Choices(Problem(make_env(count=6, **options)))
    generator = np.random.default_rng(0)
    picks = random_picks(choices, 200, generator)
    repaired = Repair(choices)(picks, generator)
    assert choices.feasible(repaired).all()
    assert (choices.pairs[repaired] <= choices.pairs[picks]).all()
    kept = choices.feasible(picks)
    assert (repaired[kept] == picks[kept]).all()
    assert not kept.all()


def test_the_last_step_was_needed():
    choices = Choices(Problem(make_env(count=6, budget=0.4)))
    generator = np.random.default_rng(0)
    picks = random_picks(choices, 50, generator)
    repaired = Repair(choices)(picks, generator)
    changed = (repaired != picks).any(axis=1)
    assert changed.any()
    for before, after in zip(picks[changed], repaired[changed], strict=True):
        raised = [np.where(np.arange(6) == group, after + 1, after) for group in np.flatnonzero(after < before)]
        assert not choices.feasible(np.array(raised)).all()


def test_groups_are_lowered_alike():
    env = make_env(count=6, budget=0.3)
    choices = Choices(Problem(env))
    choices.prices = np.full_like(choices.prices, 1.0) * choices.pairs[:, [0]] / (8 * 6 * 0.5)  # all cost the same
    picks = np.tile(choices.highest(), (500, 1))
    repaired = Repair(choices)(picks, np.random.default_rng(0))
    assert np.allclose(choices.loads(repaired) - choices.pinned, 1.0, atol=0.05)
    mean = choices.pairs[repaired, 0].mean(axis=0)
    assert np.ptp(mean) < 0.4


def test_where_lowering_ends_above_the_budget_the_cheapest_is_taken():
    choices = Choices(Problem(make_env(count=3, bits=(2, 4, 8), budget=0.3)))
    choices.prices = choices.prices[:, ::-1].copy()  # fewer bits cost more
    choices.cheapest = lambda: np.array([2, 2, 2])
    repaired = Repair(choices)(np.array([[1, 1, 0], [0, 0, 0], [2, 2, 2]]), np.random.default_rng(0))
    assert repaired.tolist() == [[2, 2, 2]] * 3


def test_random_picks_are_open_and_uniform():
    choices = Choices(Problem(make_env(count=3, bits=(2, 4, 8))))
    choices.open = choices.open.copy()
    choices.open[0, 1] = False
    picks = random_picks(choices, 3000, np.random.default_rng(0))
    shares = [np.bincount(column, minlength=3) / 3000 for column in picks.T]
    assert np.allclose(shares, [[1 / 2, 0, 1 / 2], [1 / 3] * 3, [1 / 3] * 3], atol=0.04)
