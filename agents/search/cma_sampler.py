"""Optuna's CMA-ES, kept in memory. Imports optuna and cmaes, which are in the extra `search`.

`optuna.samplers.CmaEsSampler` stores its optimiser with the study, so that several processes can share it: before each
proposal it is unpickled, its generator seeded anew, and its covariance matrix decomposed. Here one optimiser serves the
whole search, which takes half the time. Otherwise both use `cmaes.CMA` (Hansen and Ostermeier 2001) alike.
"""

from typing import Any

import cmaes
import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState


class MemoryCMASampler(BaseSampler):
    """CMA-ES for one study, whose parameters are whole numbers from 0 on and sampled together.

    The optimiser sees each parameter's K values as equal parts of [0, 1], and is told of their middles.
    """

    def __init__(self, population: int, seed: int) -> None:
        """Makes a sampler.

        Args:
            population: Trials of a generation.
            seed: Fixes what is proposed.
        """
        self._population = population
        self._generator = np.random.RandomState(seed)  # Optuna's kind
        self._random = RandomSampler(seed)
        self._optimizer: cmaes.CMA | None = None
        self._asked: set[int] = set()  # numbers of the present generation's trials
        self._solutions: list[tuple[np.ndarray, float]] = []  # those of them that are complete

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the parameters that all complete trials have."""
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Proposes values of all parameters; none before a trial is complete, as Optuna has it."""
        if not search_space or not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return {}
        sizes = _sizes(search_space)
        if self._optimizer is None:
            self._optimizer = cmaes.CMA(
                mean=np.full(len(sizes), 0.5),
                sigma=1 / 6,
                bounds=np.tile([0.0, 1.0], (len(sizes), 1)),
                n_max_resampling=10 * len(sizes),
                seed=self._generator.randint(1, 2**31 - 2),
                population_size=self._population,
            )
        if len(self._solutions) >= self._population:
            self._optimizer.tell(self._solutions[: self._population])
            self._asked, self._solutions = set(), []
        self._asked.add(trial.number)
        values = np.clip(np.rint(self._optimizer.ask() * sizes - 0.5), 0, sizes - 1).astype(int)
        return dict(zip(search_space, values.tolist(), strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a value uniformly."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Keeps what the optimiser is told of."""
        if state == TrialState.COMPLETE and trial.number in self._asked:
            point = (np.array(list(trial.params.values())) + 0.5) / _sizes(trial.distributions)
            self._solutions.append((point, values[0]))


def _sizes(distributions: dict[str, BaseDistribution]) -> np.ndarray:
    """Returns how many values parameters have, int64 (D,)."""
    return np.array([distribution.high + 1 for distribution in distributions.values()])  # type: ignore[attr-defined]
