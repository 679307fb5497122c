"""Against scipy, closed forms and enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.leaderboard.statistics import (
    bootstrap,
    difference,
    first_reached,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    time_to_target,
)

FINITE = st.floats(-100, 100)
RUNS = st.integers(1, 13).flatmap(lambda count: arrays(np.float64, count, elements=FINITE))
WHOLE = st.integers(1, 8).flatmap(lambda count: arrays(np.float64, count, elements=st.integers(0, 4)))


def mean(values):
    return values.mean(axis=1)


@given(RUNS)
def test_the_interquartile_mean_is_scipys_trimmed_mean(runs):
    assert interquartile_mean(runs) == pytest.approx(scipy.stats.trim_mean(runs, 0.25), rel=1e-12, abs=1e-12)


def test_the_interquartile_mean_of_ten_runs_leaves_out_two_on_each_side():
    assert interquartile_mean(np.array([1e9, 1, 2, 3, 4, 5, 6, -1e9, -1e9, 1e9])) == 3.5


def test_runs_without_a_result_count_as_worst():
    assert interquartile_mean(np.array([1, 2, 3, np.inf])) == 2.5
    assert interquartile_mean(np.array([1, 2, np.inf, np.inf])) == np.inf


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    runs = np.random.default_rng(1).normal(size=400)
    estimate = bootstrap([runs], mean, resamples=4000)
    half = 1.96 * runs.std() / math.sqrt(len(runs))
    assert estimate.value == runs.mean()
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.05)


def test_the_bootstrap_of_three_runs_is_that_of_all_27_resamples():
    runs = np.array([0.0, 1.0, 5.0])
    every = np.sort([np.mean(draw) for draw in itertools.product(runs, repeat=3)])
    estimate = bootstrap([runs], mean, resamples=20_000)
    # 27 equally likely means: 2.5% of them is the lowest one, 97.5% the highest.
    assert (estimate.low, estimate.high) == (every[0], every[-1])


def test_the_bootstrap_agrees_with_scipys():
    runs = np.random.default_rng(2).gamma(2.0, size=30)
    estimate = bootstrap([runs], resamples=9000)
    theirs = scipy.stats.bootstrap(
        (runs,),
        lambda values, axis: scipy.stats.trim_mean(values, 0.25, axis=axis),
        n_resamples=9000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert estimate.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert estimate.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_runs_are_drawn_within_their_stratum():
    estimate = bootstrap([np.full(5, 1.0), np.full(5, 9.0)], mean)
    assert (estimate.low, estimate.value, estimate.high) == (5, 5, 5)


def test_the_same_seed_gives_the_same_interval_to_the_bit():
    runs = np.random.default_rng(4).normal(size=10)
    ends = [(e.low, e.high) for e in (bootstrap([runs], seed=seed) for seed in (0, 0, 1))]
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_many_estimates_at_once_are_those_one_by_one():
    runs = np.random.default_rng(5).normal(size=(10, 3))
    together = bootstrap([runs])
    for column in range(3):
        alone = bootstrap([runs[:, column]])
        assert alone.low == pytest.approx(together.low[column], rel=1e-12)
        assert alone.value == pytest.approx(together.value[column], rel=1e-12)


@pytest.mark.parametrize("runs", [1, 2])
def test_few_runs_have_a_value_and_no_interval(runs):
    few, many = np.linspace(1.0, 2.0, runs), np.linspace(1.0, 2.0, 5)
    for estimate in (
        bootstrap([many, few]),
        difference([few], [many]),
        probability_of_improvement([many], [few]),
        performance_profile([few], np.array([0.0, 1.5])),
    ):
        assert np.isfinite(estimate.value).all()
        assert np.shape(estimate.low) == np.shape(estimate.high) == np.shape(estimate.value)
        assert np.isnan(estimate.low).all()
        assert np.isnan(estimate.high).all()


def test_no_estimate_is_made_from_differences_of_infinities():
    nothing = bootstrap([np.full(4, np.inf)])
    assert (nothing.low, nothing.value, nothing.high) == (np.inf, np.inf, np.inf)
    assert np.isnan(difference([np.full(4, np.inf)], [np.full(4, np.inf)]).value)


def test_the_difference_is_that_of_the_means_and_changes_sign():
    ours, theirs = np.random.default_rng(6).normal(size=(2, 10))
    estimate = difference([ours], [theirs + 3])
    assert estimate.value == interquartile_mean(ours) - interquartile_mean(theirs + 3)
    assert estimate.low < estimate.value < estimate.high < 0
    assert difference([theirs + 3], [ours]).value == -estimate.value


@given(WHOLE, WHOLE)
def test_the_probability_of_improvement_is_mann_and_whitneys(ours, theirs):
    u = scipy.stats.mannwhitneyu(ours, theirs).statistic
    estimate = probability_of_improvement([ours], [theirs], resamples=10)
    assert estimate.value == pytest.approx(u / (len(ours) * len(theirs)))
    assert probability_of_improvement([theirs], [ours], resamples=10).value == pytest.approx(1 - estimate.value)


def test_the_probability_of_improvement_weighs_strata_equally():
    ours, theirs = [np.ones(3), np.zeros(10)], [np.zeros(4), np.ones(5)]
    estimate = probability_of_improvement(ours, theirs)
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)


def test_normal_runs_improve_as_often_as_the_closed_form_says():
    rng = np.random.default_rng(7)
    estimate = probability_of_improvement([rng.normal(0.5, size=500)], [rng.normal(size=500)], resamples=50)
    assert estimate.value == pytest.approx(scipy.stats.norm.cdf(0.5 / math.sqrt(2)), abs=0.05)
    assert estimate.low < estimate.value < estimate.high


def test_a_performance_profile_is_a_share_with_a_binomial_interval():
    scores = np.arange(20) / 20
    thresholds = np.array([0.0, 0.25, 0.7, 1.0])
    profile = performance_profile([scores], thresholds, resamples=20_000)
    np.testing.assert_allclose(profile.value, [1, 0.75, 0.3, 0])
    binomial = scipy.stats.binom(20, profile.value)
    np.testing.assert_allclose(profile.low, binomial.ppf(0.025) / 20, atol=0.051)
    np.testing.assert_allclose(profile.high, binomial.ppf(0.975) / 20, atol=0.051)


def test_a_target_is_reached_at_the_first_evaluation_there():
    curves = np.array([[3, 2, 1, 1], [1, 0, 0, 0], [5, 5, 5, 5.0]])
    assert first_reached(curves, 1).tolist() == [3, 1, np.inf]


def falling_at(times, length=10):
    """Curves that fall from 1 to 0 at these evaluations."""
    return np.array([[0.0 if evaluation >= time else 1.0 for evaluation in range(1, length + 1)] for time in times])


@pytest.mark.parametrize(
    ("times", "median", "expected"),
    [
        ([3, 5, 9], 5, (3 + 5 + 9) / 3),
        ([3, 5, math.inf, math.inf], 5, (3 + 5 + 10 + 10) / 2),
        ([3, math.inf, math.inf], math.inf, (3 + 10 + 10) / 1),
        ([math.inf], math.inf, math.inf),
    ],
)
def test_runs_that_never_arrive_count_as_longer(times, median, expected):
    time = time_to_target(falling_at(times), 0)
    assert (time.runs, time.reached) == (len(times), sum(map(math.isfinite, times)))
    assert (time.median, time.expected) == (median, expected)
    assert math.isnan(time.low) if len(times) < 3 else time.low <= time.median <= time.high


@given(st.lists(st.one_of(st.integers(1, 10).map(float), st.just(math.inf)), min_size=1, max_size=12))
def test_the_median_is_kaplan_and_meiers(times):
    reached = [time for time in times if math.isfinite(time)]
    censored = scipy.stats.CensoredData(uncensored=reached, right=[10.0] * (len(times) - len(reached)))
    survival = scipy.stats.ecdf(censored).sf
    below = [t for t in range(1, 11) if t in reached and survival.evaluate(t) <= 0.5 + 1e-12]
    assert time_to_target(falling_at(times), 0, resamples=5).median == (min(below) if below else math.inf)
