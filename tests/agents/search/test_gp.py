import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from agents import make_agent
from agents.search.gp import GPAgent, _log_standard_improvement
from agents.search.random import RandomAgent
from quantenv.core.errors import QuantenvError
from tests.agents.search.brute_force import best_allocation, feasible_allocations, gap, weight_bits
from tests.agents.searches import make_env


def test_finds_the_optimum_where_random_search_does_not():
    assert [gap(GPAgent, seed) for seed in range(3)] == pytest.approx([0, 0, 0], abs=1e-9)
    assert all(gap(RandomAgent, seed) > 0.01 for seed in range(3))


def test_nothing_is_evaluated_twice_before_everything_was_evaluated_once():
    env = make_env(count=3, bits=(2, 4, 8), budget=0.6)
    everything = sorted(feasible_allocations(env).tolist())
    GPAgent(env).learn(len(everything) + 5, lambda metrics: None)
    assert sorted(weight_bits(env)[: len(everything)]) == everything
    assert weight_bits(env)[-5:] == [best_allocation(env)] * 5


def trained(evaluations=25, **options):
    env = make_env(count=5, bits=(2, 4, 6, 8), budget=0.6)
    agent = make_agent("gp", env, 0, options)
    agent.learn(evaluations, lambda metrics: None)
    return env, agent


def test_improvement_is_the_logarithm_of_its_integral():
    _, agent = trained()
    pool = agent._pool()[:6]
    from sklearn.gaussian_process import GaussianProcessRegressor

    agent._fitted_at = 10_000  # the kernel stays
    model = GaussianProcessRegressor(agent._kernel, optimizer=None, normalize_y=True)
    model.fit(agent._coordinates(agent._picks), agent._scores)
    best = agent._scores.min()
    means, deviations = model.predict(agent._coordinates(pool), return_std=True)
    expected = [
        quad(lambda y, m=mean, s=deviation: (best - y) * norm.pdf(y, m, s), mean - 12 * deviation, best)[0]
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    improvement = agent._log_improvement(pool)
    likely = np.array(expected) > 1e-9
    assert likely.any()
    assert improvement[likely] == pytest.approx(np.log(np.array(expected)[likely]), abs=1e-3)


def test_improvement_neither_underflows_nor_jumps():
    z = np.linspace(-40, 3, 20_000)
    values = _log_standard_improvement(z)
    assert np.isfinite(values).all()
    steps = np.diff(values)
    assert (steps[z[1:] < -5.01] > 0).all()
    assert (steps[z[1:] > -4.99] > 0).all()
    assert values[-1] == pytest.approx(np.log(3), abs=1e-3)


def test_improvement_is_expected_where_harm_is_low():
    env, agent = trained(60)
    every = feasible_allocations(env)
    picks = (every[..., None] == agent._choices.pairs[:, 0]).argmax(axis=-1)
    unseen = picks[[pick.tobytes() not in agent._known for pick in picks]]
    bits = agent._choices.pairs[unseen, 0]
    harm = sum(env.unwrapped.evaluator.harm[layer, chosen - 1, 7] for layer, chosen in enumerate(bits.T))
    best = np.argsort(-agent._log_improvement(unseen))[:5]
    assert harm[best].mean() < np.quantile(harm, 0.1)


def test_work_is_bounded():
    _, agent = trained(90, points=30)
    seen = agent._seen()
    assert len(agent._scores) == 90
    assert len(seen) == 30
    assert set(np.argsort(agent._scores, kind="stable")[:15]) <= set(seen)
    assert 89 in seen
    assert agent.metrics() == {"train/kernel_points": 22.0}  # fitted to 10, then to 20 or a little more
    with pytest.raises(QuantenvError, match="points must be at least 2"):
        make_agent("gp", make_env(), config={"points": 1})


def test_coordinates_are_steps():
    _, agent = trained(1)
    assert agent._coordinates(np.array([[0, 1, 2, 3, 0]])) == pytest.approx(
        np.array([[1.0, (2**-4 - 2**-8) / (2**-2 - 2**-8), (2**-6 - 2**-8) / (2**-2 - 2**-8), 0.0, 1.0]])
    )


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(30)
