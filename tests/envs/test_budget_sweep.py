import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from agents.base import vectorize
from quantenv.core.errors import QuantenvError
from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.environment import QuantizationEnv
from tests.envs.synthetic_env import highest, play, same
from tests.synthetic import AdditiveEvaluator


def make(levels=4, **options):
    evaluator = AdditiveEvaluator()
    return BudgetSweepEnv(None, levels=levels, evaluator=evaluator, sensitivity=evaluator.sensitivity, **options)


def levels_of(env, episodes, seed=None):
    drawn = []
    for _ in range(episodes):
        env.reset(seed=seed)
        drawn.append(env.level)
        seed = None
    return drawn


def test_levels_lie_evenly_between_the_cheapest_and_the_dearest_allocation():
    env = make(bits=(2, 4, 8))
    full = sum(layer.params for layer in env.layers)
    assert env.level_limits == pytest.approx([full * (1 / 4 + 3 / 4 * share) for share in (0.25, 0.5, 0.75, 1)])
    assert make(bits=(2, 4, 8), budget=0.5).level_limits[-1] == pytest.approx(0.5 * full)


@pytest.mark.parametrize("constraint", ["mask", "project"])
@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_an_episode_is_one_under_its_budget(constraint, decisions):
    sweep = make(levels=3, metric="bops", decisions=decisions, constraint=constraint)
    for level, limit in enumerate(sweep.level_limits):
        fixed = QuantizationEnv(
            None,
            metric="bops",
            budget=limit / sweep.tables["bops"].reference,
            decisions=decisions,
            constraint=constraint,
            evaluator=sweep.evaluator,
            sensitivity=sweep.sensitivity,
        )
        for env in (sweep, fixed):
            env.reset(seed=0, options={"level": level} if env is sweep else None)
        ended = False
        while not ended:
            assert sweep.action_masks().tolist() == fixed.action_masks().tolist()
            action = highest(fixed.action_masks())
            seen, reward, ended, _, info = sweep.step(action)
            observation, expected, _, _, fixed_info = fixed.step(action)
            assert seen[:-1] == pytest.approx(observation, abs=1e-6)
            assert seen[-1] == np.float32((level + 1) / 3)
            assert reward == expected
        assert info["budget_bops"] == pytest.approx(fixed_info["budget_bops"])
        assert info["bits"].tolist() == fixed_info["bits"].tolist()
        assert info["feasible"] == 1


def test_same_seed_same_budgets_and_all_are_drawn():
    env = make()
    first = levels_of(env, 200, seed=5)
    assert levels_of(env, 200, seed=5) == first
    assert levels_of(make(), 200, seed=5) == first
    assert levels_of(env, 200, seed=6) != first
    assert min(np.bincount(first, minlength=4)) > 25


def test_asking_for_a_level_draws_none():
    env, other = make(), make()
    env.reset(seed=1)
    other.reset(seed=1)
    env.reset(options={"level": 2})
    assert env.level == 2
    assert levels_of(env, 20) == levels_of(other, 20)


def test_copies_draw_apart_and_repeat():
    def draws(env):
        copies = vectorize(env, 8)
        seen = []
        for seed in (3, None, None):
            observations, _ = copies.reset(seed=seed)
            seen.append(observations[:, -1].tolist())
        return seen

    env = make(levels=16)
    first, second = draws(env), draws(env)
    assert len({*first[0]}) > 3  # all copies are seeded alike, and yet differ
    assert first != second
    again = make(levels=16)
    assert [draws(again), draws(again)] == [first, second]


def test_copies_play_what_the_environment_plays():
    env = make(levels=16)
    copies = vectorize(env, 3)
    _, infos = copies.reset(seed=0)
    levels = [each.level for each in copies.copies]
    for _ in range(env.n_decisions):
        actions = np.array([highest(mask) for mask in infos["action_mask"]])
        _, rewards, _, _, infos = copies.step(actions)
    for copy, level in enumerate(levels):
        env.reset(options={"level": level})
        info = {}
        for _ in range(env.n_decisions):
            _, reward, _, _, info = env.step(highest(env.action_masks()))
        final = {key: values[copy] for key, values in infos["final_info"].items()}
        assert final["bits"].tolist() == info["bits"].tolist()
        assert (final["budget_size"], rewards[copy]) == (info["budget_size"], reward)


def test_the_registered_id_passes_gymnasiums_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("quantenv/DigitsTableSweep-v0", render_mode="ansi")
        gymnasium_check_env(env.unwrapped)
    assert env.observation_space.shape == (len(env.get_wrapper_attr("feature_names")),)


def test_same_seed_same_episode():
    left, right = make(), make()
    for env in (left, right):
        env.reset(seed=9)
    assert same(play(left, highest), play(right, highest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "from 2 to 10000"),
        ({"reward": "weighted"}, "needs a fixed budget"),
        ({"regret": True}, "needs a fixed budget"),
        ({"metric": ("size", "bops"), "budget": (0.9, 0.9)}, "over one budget, not 2"),
        ({"budget": 0.25}, "only the cheapest"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(QuantenvError, match=message):
        make(**options)


@pytest.mark.parametrize("level", [4, -1, 0.5, "low"])
def test_unknown_levels_are_refused(level):
    with pytest.raises(QuantenvError, match="whole number from 0 to 3"):
        make().reset(options={"level": level})
