"""Optuna's multivariate TPE, by tables. Imports optuna, which is in the extra `search`.

The tree-structured Parzen estimator (Bergstra et al., NIPS 2011; with kernels over all parameters at once, Falkner et
al., ICML 2018) splits the trials into a few good ones and the rest, and estimates the density of each kind. It draws
from that of the good ones, and proposes the draw at which it is greatest beside that of the rest. In a density every
trial is a product of truncated normals, one for each parameter: about its value, and as wide as the gap to the next.

`optuna.samplers.TPESampler` computes those normals anew for each proposal, whatever the parameters are. Here they are
whole numbers 0..K-1, where a normal is K probabilities, looked up by its centre and gap. All else is as in Optuna 5
with ``multivariate=True``: the same seed proposes the same trials, several times as fast. (Of equal values only the
first and the last have a gap. Which these are is decided in Optuna by the processor's way of sorting, here by the
order of the trials.)
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

#: Share of the finished trials that are good, and the most of them.
GOOD_SHARE, MOST_GOOD = 0.1, 25

#: So many of the latest trials have the full weight; the earlier, the less.
LATEST = 25

#: No normal is narrower than its parameter's range over this, or over one more than there are normals if that is less.
FINEST = 100


class TableTPESampler(BaseSampler):
    """TPE for one study, whose parameters are whole numbers from 0 on and sampled together."""

    def __init__(self, startup: int, candidates: int, seed: int) -> None:
        """Makes a sampler.

        Args:
            startup: Finished trials before the first model.
            candidates: Draws from the density of the good trials, of which one is proposed.
            seed: Fixes what is proposed.
        """
        self._startup, self._candidates = startup, candidates
        self._generator = np.random.RandomState(seed)  # Optuna's kind
        self._random = RandomSampler(seed)
        self._trials_read = 0  # all before the first that runs
        self._values = np.empty((0, 0), dtype=np.int64)  # of the complete ones among them, (n, D)
        self._objectives = np.empty(0)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the parameters that all complete trials have."""
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Proposes values of all parameters, or none before the first model."""
        if not search_space:
            return {}
        running = self._read(study, trial, list(search_space))
        complete = len(self._objectives)
        if complete < self._startup:
            return {}
        sizes = tuple(int(each.high) + 1 for each in search_space.values())  # type: ignore[attr-defined]
        good = np.zeros(complete, dtype=bool)
        good[np.argsort(self._objectives, kind="stable")[: min(math.ceil(GOOD_SHARE * complete), MOST_GOOD)]] = True
        below = Density(self._values[good], sizes)
        # What runs counts as bad, so that the next trials keep away from it.
        above = Density(np.concatenate([self._values[~good], running]), sizes)
        drawn = below.draw(self._candidates, self._generator)  # (C, D)
        best = drawn[np.argmax(below.log_density(drawn) - above.log_density(drawn))]
        return dict(zip(search_space, best.tolist(), strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a value uniformly."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _read(self, study: optuna.Study, trial: FrozenTrial, names: list[str]) -> np.ndarray:
        """Adds the trials that have finished, and returns the values of the others but this one, int64 (n, D)."""
        trials = study.get_trials(deepcopy=False)[self._trials_read :]
        first = next(index for index, each in enumerate(trials) if not each.state.is_finished())  # this one, at last
        complete = [each for each in trials[:first] if each.state == TrialState.COMPLETE]
        self._trials_read += first
        self._values = np.concatenate([self._values.reshape(-1, len(names)), _values(complete, names)])
        self._objectives = np.append(self._objectives, [each.value for each in complete])
        return _values([each for each in trials[first:] if each.number != trial.number], names)


def _values(trials: list[FrozenTrial], names: list[str]) -> np.ndarray:
    """Returns the values of parameters, int64 (n, D)."""
    return np.array([[each.params[name] for name in names] for each in trials], np.int64).reshape(-1, len(names))


class Density:
    """A mixture of products of truncated normals on whole numbers: one for each trial, and a wide one."""

    def __init__(self, values: np.ndarray, sizes: tuple[int, ...]) -> None:
        """Makes the density of some trials.

        Args:
            values: Of their parameters, int (n, D), the earliest trial first.
            sizes: How many values each parameter has, at most K.
        """
        count, parameters = values.shape
        weights = np.ones(count + 1)  # the last one is the wide normal's
        if count > LATEST:
            weights[: count - LATEST] = np.linspace(1 / count, 1, count - LATEST)
        self._weights = weights / weights.sum()
        narrow, wide = _tables(sizes, min(FINEST, count + 2))
        found = narrow[np.arange(parameters), _half_gaps(values, sizes), values]  # (n, D, K)
        #: Logarithms of the normals' probabilities, (D, K, n + 1).
        self._normals = np.concatenate([np.moveaxis(found, 0, -1), wide[:, :, None]], axis=2)

    def draw(self, count: int, generator: np.random.RandomState) -> np.ndarray:
        """Draws values of all parameters, int64 (count, D)."""
        chosen = generator.choice(len(self._weights), p=self._weights, size=count)
        reached = np.exp(self._normals[:, :, chosen]).cumsum(axis=1)  # (D, K, count)
        levels = generator.uniform(size=(len(reached), count))
        return (reached[:, :-1] < levels[:, None]).sum(axis=1).T

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the density at values (C, D), float64 (C,)."""
        terms = np.tile(np.log(self._weights), (len(values), 1))  # (C, n + 1)
        for normals, value in zip(self._normals, values.T, strict=True):
            terms += normals[value]
        largest = terms.max(axis=1)
        return np.log(np.exp(terms - largest[:, None]).sum(axis=1)) + largest


def _half_gaps(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Returns twice the wider gap from each value (n, D) to the next below and above among its parameter's, (n, D)."""
    order = np.argsort(values, axis=0, kind="stable")
    ends = np.full(len(sizes), -0.5), np.array(sizes) - 0.5
    ordered = np.vstack([ends[0], np.take_along_axis(values, order, axis=0), ends[1]])
    gaps = ordered[1:] - ordered[:-1]  # (n + 1, D)
    wider = np.maximum(gaps[:-1], gaps[1:])
    if len(values) > 1:  # an end of the range is a neighbour only to a value that has no other
        wider[0], wider[-1] = gaps[1], gaps[-2]
    half_gaps = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(half_gaps, order, (2 * wider).astype(np.int64), axis=0)
    return half_gaps


@lru_cache(maxsize=2 * FINEST)
def _tables(sizes: tuple[int, ...], finest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns log-probabilities of the numbers 0..K-1 under normals; where a parameter has fewer, of the others -inf.

    Args:
        sizes: How many values each parameter has, at most K.
        finest: No normal is narrower than its parameter's range over this.

    Returns:
        By parameter, twice the gap, and centre, float64 (D, 2K + 1, K, K); and of the wide normals, (D, K).
    """
    most = max(sizes)
    narrow = np.full((len(sizes), 2 * most + 1, most, most), -np.inf)
    wide = np.full((len(sizes), most), -np.inf)
    for parameter, size in enumerate(sizes):
        widths = np.maximum(np.arange(2 * size + 1) / 2, size / finest)
        narrow[parameter, : 2 * size + 1, :size, :size] = _log_probabilities(np.arange(size), widths[:, None], size)
        wide[parameter, :size] = _log_probabilities(np.array((size - 1) / 2), np.array(float(size)), size)
    return narrow, wide


def _log_probabilities(centres: np.ndarray, widths: np.ndarray, size: int) -> np.ndarray:
    """Returns log-probabilities of 0..K-1 under normals that end at -1/2 and K-1/2, float64 (..., K)."""
    z = (np.arange(size + 1) - 0.5 - centres[..., None]) / widths[..., None]  # (..., K + 1)
    left, right = z[..., :-1], z[..., 1:]
    # Above the centre both of a difference may be nearly 1; mirrored, they are as exact as below.
    mass = np.where(left > 0, ndtr(-left) - ndtr(-right), ndtr(right) - ndtr(left))
    with np.errstate(divide="ignore"):  # far from the centre of a narrow normal it is 0
        return np.log(mass) - np.log(ndtr(z[..., -1:]) - ndtr(z[..., :1]))
