"""Bayesian optimisation with a Gaussian process (Mockus 1975; Jones, Schonlau and Welch, J. Global Optim. 13, 1998).

The process models the logarithm of the objective over the quantization steps: a group's weights and activations of b
bits have the coordinate ``2**-b``, in proportion to which they are rounded, scaled to 0-1. Its kernel is a Matern 5/2
with a length for each coordinate, and noise; scikit-learn fits it. Candidates are those of greatest expected
improvement (Jones et al., equation 15) in a pool of unknown feasible allocations: random swaps around the best known
ones, and random ones.

Work per evaluation is bounded. The process sees at most `points` evaluations, the better half of them the best ones
and the rest the latest, and its kernel is fitted only when their number has doubled; from `points` on it stays.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from scipy.stats import norm

from agents.base import require_in_range
from agents.search.ask_tell import AskTellAgent, Results
from agents.search.choices import Choices
from agents.search.repair import Repair, random_picks

#: Added to the objective before its logarithm is taken: far below one sample's share of the error.
LEAST = 1e-4


@dataclass(frozen=True)
class GPConfig:
    """Options of Bayesian optimisation."""

    startup: int = 10
    """Random evaluations before the first model."""
    batch: int = 4
    """Candidates proposed by one model."""
    elite: int = 10
    """Best known allocations around which half of the pool is drawn."""
    pool: int = 400
    """Allocations drawn for the pool."""
    points: int = 160
    """Most evaluations that the process sees."""

    def __post_init__(self) -> None:
        require_in_range(self, 2, math.inf, "startup", "pool", "points")
        require_in_range(self, 1, math.inf, "batch", "elite")


class GPAgent(AskTellAgent):
    """Bayesian optimisation: a Gaussian process and expected improvement."""

    name: ClassVar[str] = "gp"
    config_class: ClassVar[type] = GPConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        self._choices = Choices(self.problem)
        self._repair = Repair(self._choices)
        self._picks = np.empty((0, len(self._choices.open)), dtype=np.int64)  # evaluated
        self._scores = np.empty(0)  # logarithms of their objectives
        self._known: set[bytes] = set()
        self._kernel: Any = None
        self._fitted_at = 0  # evaluations seen when the kernel was fitted

    def ask(self, count: int) -> np.ndarray:
        """Proposes random allocations first, then those of greatest expected improvement."""
        started = len(self._picks) >= self.config.startup
        wanted = min(count, self.config.batch if started else self.config.startup - len(self._picks))
        pool = self._pool()
        if started and len(pool) > wanted:
            pool = pool[np.argsort(-self._log_improvement(pool), kind="stable")]
        asked = pool[:wanted]
        self._known.update(pick.tobytes() for pick in asked)
        return self._choices.actions(asked)

    def tell(self, results: Results) -> None:
        """Adds what was evaluated to what the process sees."""
        picks = self._choices.picks(results.actions)
        self._picks = np.concatenate([self._picks, picks])
        self._scores = np.concatenate([self._scores, np.log(np.maximum(results.objective, 0) + LEAST)])
        self._known.update(pick.tobytes() for pick in picks)

    def metrics(self) -> dict[str, float]:
        """Returns how many evaluations the kernel was fitted to."""
        return {"train/kernel_points": float(self._fitted_at)}

    def _pool(self) -> np.ndarray:
        """Draws unknown feasible picks, int64 (k, F), random ones first."""
        half = self.config.pool // 2
        drawn = [self._repair(random_picks(self._choices, half, self.generator), self.generator)]
        if len(self._picks):
            elite = self._picks[np.argsort(self._scores, kind="stable")[: self.config.elite]]
            near = self._choices.swaps(np.resize(elite, (half, elite.shape[1])), self.generator)
            drawn += [near, self._choices.swaps(near, self.generator)]
        pool = {pick.tobytes(): pick for pick in np.concatenate(drawn)}
        unknown = [pick for key, pick in pool.items() if key not in self._known]
        return np.array(unknown, dtype=np.int64).reshape(-1, self._picks.shape[1])

    def _log_improvement(self, pool: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the expected improvement of picks (k, F) on the best score, float64 (k,)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor  # takes a second to import

        seen = self._seen()
        scores = self._scores[seen]
        refit = len(seen) >= 2 * self._fitted_at
        model = GaussianProcessRegressor(
            kernel=self._kernel or self._first_kernel(),
            optimizer=_lbfgs if refit else None,
            normalize_y=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # lengths at their bounds: groups that do not matter
            model.fit(self._coordinates(self._picks[seen]), scores)
        if refit:
            self._kernel, self._fitted_at = model.kernel_, len(seen)
        mean, deviation = model.predict(self._coordinates(pool), return_std=True)
        deviation = np.maximum(deviation, 1e-12)
        return np.log(deviation) + _log_standard_improvement((scores.min() - mean) / deviation)

    def _seen(self) -> np.ndarray:
        """Indices of the evaluations that the process sees: the best and the latest."""
        points = self.config.points
        if len(self._scores) <= points:
            return np.arange(len(self._scores))
        best = np.argsort(self._scores, kind="stable")[: points // 2]
        others = np.setdiff1d(np.arange(len(self._scores)), best)
        return np.sort(np.concatenate([best, others[len(others) - (points - len(best)) :]]))

    def _coordinates(self, picks: np.ndarray) -> np.ndarray:
        """Returns the coordinates of picks (k, F), float64 (k, D): 0 at the least steps, 1 at the greatest."""
        steps = 2.0 ** -self._choices.pairs.astype(np.float64)  # (P, 2)
        low, high = steps.min(axis=0), steps.max(axis=0)
        free = high > low
        return ((steps - low)[:, free] / (high - low)[free])[picks].reshape(len(picks), -1)

    def _first_kernel(self) -> Any:
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        lengths = np.ones(self._coordinates(self._picks[:1]).shape[1])
        return ConstantKernel(1.0, (1e-2, 1e2)) * Matern(lengths, (0.05, 20.0), nu=2.5) + WhiteKernel(1e-3, (1e-6, 1.0))


def _log_standard_improvement(z: np.ndarray) -> np.ndarray:
    """Returns log(phi(z) + z Phi(z)), float64 (k,): without underflow, so that hopeless candidates are ordered too.

    Far below, the sum is phi(z) / z^2 to first order (Ament et al., NeurIPS 2023, section 4).
    """
    near = np.maximum(z, -5.0)
    far = np.minimum(z, -5.0)
    exact = np.log(norm.pdf(near) + near * norm.cdf(near))
    return np.asarray(np.where(z > -5, exact, norm.logpdf(far) - 2 * np.log(-far)))


def _lbfgs(objective: Any, start: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
    """Fits a kernel's hyperparameters in at most 30 iterations, which is as far as it pays."""
    from scipy.optimize import minimize

    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 30})
    return found.x, float(found.fun)
