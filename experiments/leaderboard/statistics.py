"""Statistics of repeated searches: interquartile means, bootstrap intervals, profiles, and how long a target took.

The measures are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021): interquartile mean, stratified bootstrap, performance profile, probability of improvement. Runs come in
strata: one stratum holds the runs (seeds) of one task and budget, and resampling draws runs with replacement within
each stratum. The intervals are percentile intervals. Same seed, same interval, to the bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: What is estimated: from values along axis 1 of (resamples, runs, ...) to (resamples, ...).
Statistic = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
#: Runs of each stratum that an interval needs: fewer say nothing of how runs differ.
LEAST_RUNS = 3
CONFIDENCE = 0.95
#: Share of the runs that an interquartile mean leaves out on each side.
TRIMMED = 0.25


@dataclass(frozen=True)
class Estimate:
    """A statistic and its interval; floats, or arrays where several were estimated at once."""

    value: np.ndarray
    """The statistic of the runs."""
    low: np.ndarray
    """Lower end of the interval; NaN if a stratum has fewer than `LEAST_RUNS` runs."""
    high: np.ndarray
    """Upper end of the interval; NaN likewise."""


@dataclass(frozen=True)
class TimeToTarget:
    """Evaluations until a target was reached, when some runs ended before they reached it (were censored)."""

    runs: int
    """Runs."""
    reached: int
    """Runs that reached the target."""
    median: float
    """Least number of evaluations by which at least half of the runs had reached it; inf if less than half did."""
    low: float
    """Lower end of the median's interval; NaN if there are fewer than `LEAST_RUNS` runs."""
    high: float
    """Upper end of the median's interval, NaN likewise; inf means: beyond the end of the runs."""
    expected: float
    """Expected running time of COCO (Hansen et al. 2021, section 3): all evaluations spent until the target or the end,
    by all runs, over the number of runs that reached it; inf if none did."""


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Averages what is left after the lowest and the highest quarter, rounded down, are left out.

    Args:
        values: Runs along `axis`, at least one; inf stands for a run without a result.
        axis: The axis that is averaged.

    Returns:
        The means: shape of `values` without `axis`; inf where too many runs have no result.
    """
    ordered = np.sort(values, axis=axis)
    count = ordered.shape[axis]
    cut = int(TRIMMED * count)
    return ordered.take(range(cut, count - cut), axis=axis).mean(axis=axis)


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Statistic | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimates a statistic over all runs with a stratified bootstrap interval.

    Args:
        strata: Runs of each stratum, (n, ...): what follows the first axis is the same in all.
        statistic: See `Statistic`; the interquartile mean unless given.
        resamples: How often runs are drawn anew.
        seed: Of the draws.

    Returns:
        The estimate, of the shape that follows the runs.
    """
    measure = statistic or (lambda values: interquartile_mean(values, axis=1))
    drawn = np.concatenate(_resampled(strata, resamples, np.random.default_rng(seed)), axis=1)
    return _estimate(measure(np.concatenate(strata)[None])[0], measure(drawn), strata)


def difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimates the difference of two interquartile means, of independent runs.

    Args:
        ours: Runs of each stratum, (n,).
        theirs: Runs that are compared with them, (m,) each.
        resamples: How often runs are drawn anew.
        seed: Of the draws.

    Returns:
        Our mean less theirs; nan where both are infinite.
    """
    rng = np.random.default_rng(seed)
    means = [
        (
            interquartile_mean(np.concatenate(side)),
            interquartile_mean(np.concatenate(_resampled(side, resamples, rng), axis=1), axis=1),
        )
        for side in (ours, theirs)
    ]
    with np.errstate(invalid="ignore"):  # inf - inf: neither side has a result
        return _estimate(means[0][0] - means[1][0], means[0][1] - means[1][1], [*ours, *theirs])


def probability_of_improvement(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimates how likely a run of ours has a larger value than one of theirs in a stratum drawn at random.

    In each stratum it is Mann and Whitney's U over n m: of all pairs, the share in which ours is larger, plus half the
    share of ties.

    Args:
        ours: Runs of each stratum, (n,); larger is better.
        theirs: Runs of the same strata, (m,) each.
        resamples: How often runs of both are drawn anew.
        seed: Of the draws.

    Returns:
        The mean over the strata, 0-1.
    """
    rng = np.random.default_rng(seed)
    value = np.mean([_larger(x[None], y[None])[0] for x, y in zip(ours, theirs, strict=True)])
    drawn = zip(_resampled(ours, resamples, rng), _resampled(theirs, resamples, rng), strict=True)
    return _estimate(value, np.mean([_larger(x, y) for x, y in drawn], axis=0), [*ours, *theirs])


def performance_profile(
    strata: Sequence[np.ndarray], thresholds: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimates which share of the runs has at least each of some scores.

    Args:
        strata: Scores of the runs of each stratum, (n,).
        thresholds: Scores, (K,).
        resamples: How often runs are drawn anew.
        seed: Of the draws.

    Returns:
        The shares, 0-1, (K,).
    """
    reached = [(scores[:, None] >= thresholds).astype(np.float64) for scores in strata]
    return bootstrap(reached, lambda values: values.mean(axis=1), resamples, seed)


def first_reached(curves: np.ndarray, target: float) -> np.ndarray:
    """Returns after how many evaluations each run's curve is at the target or below for the first time.

    Args:
        curves: What falls along each run, (runs, evaluations).
        target: The target.

    Returns:
        Evaluations, from 1, float64 (runs,); inf for runs that never are: they are censored at their end.
    """
    reached = curves <= target
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, math.inf)


def time_to_target(curves: np.ndarray, target: float, resamples: int = RESAMPLES, seed: int = 0) -> TimeToTarget:
    """Estimates how many evaluations a target takes. All runs end after the same number of evaluations.

    Runs that end before they reach it count as longer than all that do, so medians are Kaplan and Meier's.

    Args:
        curves: What falls along each run, (runs, evaluations).
        target: The target.
        resamples: How often runs are drawn anew.
        seed: Of the draws.

    Returns:
        The estimate.
    """
    times = first_reached(curves, target)
    reached = int(np.isfinite(times).sum())
    spent = np.minimum(times, curves.shape[1]).sum()
    median = bootstrap([times], lambda values: _quantile(values, 0.5, axis=1), resamples, seed)
    return TimeToTarget(
        runs=len(times),
        reached=reached,
        median=float(median.value),
        low=float(median.low),
        high=float(median.high),
        expected=float(spent / reached) if reached else math.inf,
    )


def _resampled(strata: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draws runs with replacement within each stratum: (resamples, n, ...) each."""
    return [runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in strata]


def _larger(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns the share of pairs in which ours is larger, ties half: (R, n) and (R, m) to (R,)."""
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(1, 2))


def _estimate(value: np.ndarray, resampled: np.ndarray, strata: Sequence[np.ndarray]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    if min(map(len, strata)) < LEAST_RUNS:
        nowhere = np.full_like(np.asarray(value, dtype=np.float64), np.nan)
        return Estimate(value, nowhere, nowhere)
    return Estimate(value, _quantile(resampled, tail, axis=0), _quantile(resampled, 1 - tail, axis=0))


def _quantile(values: np.ndarray, share: float, axis: int) -> np.ndarray:
    """Returns a quantile that is one of the values: interpolating between a number and inf would give no number."""
    return np.quantile(values, share, axis=axis, method="inverted_cdf")
