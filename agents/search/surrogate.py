"""A surrogate of the evaluations, learned as they come in: Thompson sampling on a Bayesian ridge regression.

The model is additive, as the proxy is, and corrects it: an allocation's score is linear in the sensitivities of its
groups of tied layers and in which weight bits and which activation bits each of them has. The regression (MacKay,
Neural Computation 4, 1992; scikit-learn's BayesianRidge) estimates from the evaluations how uncertain each coefficient
is. Each candidate is then the best of a pool by one draw of the coefficients (Thompson, Biometrika 25, 1933; Russo and
Van Roy, Mathematics of Operations Research 39, 2014), so that a batch holds different ones where the model is unsure.
The pool holds unknown allocations around the best known ones.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np
from scipy.linalg import solve_triangular

from agents.base import require_in_range
from agents.search.ask_tell import AskTellAgent, Results
from agents.search.choices import Choices, harm_of
from agents.search.ilp import solve
from agents.search.proxy import group_harms

#: Rounds of further and further swaps without an unknown allocation after which the search is at its end.
FARTHEST = 20


@dataclass(frozen=True)
class SurrogateConfig:
    """Options of the learned surrogate."""

    sensitivity: str = ""
    """Kind of sensitivity that measures harm; empty means the default of `quantenv.sensitivity.measure`."""
    batch: int = 8
    """Candidates proposed by one fit of the model."""
    warmup: int = 8
    """Evaluations before the first fit; until then candidates are the proxy's best of the pool."""
    elite: int = 10
    """Best known allocations around which the pool is drawn."""
    pool: int = 300
    """Allocations drawn for the pool at once."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "batch", "warmup", "elite", "pool")


class SurrogateAgent(AskTellAgent):
    """A learned surrogate: ridge regression on sensitivities and bits, refitted as evaluations come in."""

    name: ClassVar[str] = "surrogate"
    config_class: ClassVar[type] = SurrogateConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        super().__init__(env, seed, config)
        self._choices = Choices(self.problem)
        groups = len(self._choices.open)
        self._picks = np.empty((0, groups), dtype=np.int64)  # evaluated
        self._scores = np.empty(0)
        self._known: set[bytes] = set()

    @cached_property
    def _harms(self) -> np.ndarray:
        return self._choices.harms(group_harms(self.env, self.config.sensitivity or None))

    def ask(self, count: int) -> np.ndarray:
        """Proposes the proxy's answer first, then what the draws of the model think best."""
        if not len(self._picks):
            return self._choices.actions(solve(self._choices.knapsack(self._harms)).options[None])
        pool = self._pool()
        count = min(count, self.config.batch, len(pool))
        if not count:
            return np.empty((0, self.problem.n_decisions), dtype=np.int64)
        if len(self._picks) < self.config.warmup:
            asked = pool[np.argsort(harm_of(self._harms, pool), kind="stable")[:count]]
        else:
            asked = pool[_one_by_each(self._draw_scores(pool, count))]
        self._known.update(pick.tobytes() for pick in asked)
        return self._choices.actions(asked)

    def tell(self, results: Results) -> None:
        """Adds what was evaluated to the data of the next fit."""
        picks = self._choices.picks(results.actions)
        self._picks = np.concatenate([self._picks, picks])
        self._scores = np.concatenate([self._scores, results.objective])
        self._known.update(pick.tobytes() for pick in picks)

    def _pool(self) -> np.ndarray:
        """Draws unknown feasible picks around the best known ones, int64 (k, F); more swaps away if need be."""
        elite = self._picks[np.argsort(self._scores, kind="stable")[: self.config.elite]]
        drawn = np.resize(elite, (self.config.pool, elite.shape[1]))
        pool: dict[bytes, np.ndarray] = {}
        for rounds in range(FARTHEST):
            drawn = self._choices.swaps(drawn, self.generator)
            pool |= {pick.tobytes(): pick for pick in drawn if pick.tobytes() not in self._known}
            if rounds and len(pool) >= self.config.batch:
                break
        return np.array(list(pool.values())).reshape(-1, elite.shape[1])

    def _draw_scores(self, pool: np.ndarray, draws: int) -> np.ndarray:
        """Fits the model and returns scores of the pool by draws of its coefficients, float64 (draws, k)."""
        from sklearn.linear_model import BayesianRidge  # takes a second to import

        known = self._features(self._picks)
        model = BayesianRidge().fit(known, self._scores)
        # Its sigma_ leaves out what no evaluation says anything of, which is where the prior's full width belongs.
        centred = known - known.mean(axis=0)
        precision = model.alpha_ * centred.T @ centred + model.lambda_ * np.eye(known.shape[1])
        noise = self.generator.standard_normal((known.shape[1], draws))
        noise = solve_triangular(np.linalg.cholesky(precision), noise, trans="T", lower=True)
        return (model.coef_ + noise.T) @ self._features(pool).T

    def _features(self, picks: np.ndarray) -> np.ndarray:
        """Describes picks (k, F): each group's harm and one-hot weight and activation bits, float64 (k, features)."""
        groups = np.arange(picks.shape[1])
        harms = self._harms[groups, picks] / (np.ptp(self._harms[self._choices.open]) or 1.0)
        bits = self._choices.pairs[picks]  # (k, F, 2)
        hot = [bits[..., [column]] == np.unique(self._choices.pairs[:, column]) for column in (0, 1)]
        return np.concatenate([harms, *(each.reshape(len(picks), -1) for each in hot)], axis=1)


def _one_by_each(scores: np.ndarray) -> list[int]:
    """Lets each row of scores (n, k), n <= k, take its lowest column that no earlier row took."""
    chosen: list[int] = []
    for row in scores:
        row[chosen] = np.inf
        chosen.append(int(np.argmin(row)))
    return chosen
