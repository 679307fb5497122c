import functools
import itertools
import warnings

import cmaes
import numpy as np
import optuna
import pytest

from agents.search import cma_sampler
from tests.agents.search.test_tpe_sampler import search


class Reseeded(cmaes.CMA):
    """Draws as in Optuna: from a seed of its own for each trial, and from a new optimiser in two generations."""

    def __init__(self, draws, numbers, **options):
        super().__init__(**options)
        self._draws, self._numbers, self._new = draws, numbers, True

    def ask(self):
        if self.generation < 2 and not self._new:
            self._draws.randint(1, 2**31 - 2)
        self._new = False
        self._rng.seed(self._draws.randint(1, 2**16) + next(self._numbers))
        return super().ask()


@pytest.mark.parametrize("sizes", [[7] * 4, [2, 3, 8], [5]])
def test_but_for_the_seeds_of_the_trials_it_proposes_what_optuna_proposes(sizes, monkeypatch):
    population = 6
    optunas = optuna.samplers.CmaEsSampler(seed=5, popsize=population, warn_independent_sampling=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        expected = search(optunas, sizes, population, 20)
    sampler = cma_sampler.MemoryCMASampler(population, 5)
    numbers = itertools.count(population)  # the first generation is random
    monkeypatch.setattr(cma_sampler.cmaes, "CMA", functools.partial(Reseeded, sampler._generator, numbers))
    assert search(sampler, sizes, population, 20) == expected
    assert len(np.unique(expected, axis=0)) > 3
