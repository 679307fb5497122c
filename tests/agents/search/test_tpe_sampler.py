import functools
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution

from agents.search.tpe_sampler import Density, TableTPESampler


def search(sampler, sizes, batch, rounds=30):
    """Returns the values of a study's trials; every seventh round fails."""
    target = np.random.default_rng(0).integers(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=sampler)
    distributions = {f"x{index}": IntDistribution(0, size - 1) for index, size in enumerate(sizes)}
    tried = []
    for number in range(1, rounds + 1):
        trials = [study.ask(distributions) for _ in range(batch)]
        for trial in trials:
            tried.append(list(trial.params.values()))
            failed = number % 7 == 0
            value = None if failed else float(np.square(tried[-1] - target).sum())
            study.tell(trial, value, optuna.trial.TrialState.FAIL if failed else None)
    return tried


@pytest.mark.parametrize("startup", [1, 10])
@pytest.mark.parametrize(("sizes", "batch"), [([7] * 4, 1), ([2, 3, 8], 1), ([7, 3], 4)])
def test_proposes_what_optuna_proposes(sizes, batch, startup, monkeypatch):
    # Optuna leaves the order of equal values to the processor.
    monkeypatch.setattr(np, "argsort", functools.partial(np.argsort, kind="stable"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optunas = optuna.samplers.TPESampler(n_startup_trials=startup, n_ei_candidates=24, multivariate=True, seed=5)
    rounds = 120 if batch == 1 else 30
    expected = search(optunas, sizes, batch, rounds)
    assert search(TableTPESampler(startup, 24, 5), sizes, batch, rounds) == expected
    assert len({tuple(values) for values in expected}) > 10


@pytest.mark.parametrize("count", [0, 1, 2, 30, 200])
def test_a_density_sums_to_one_and_is_drawn_from(count):
    generator = np.random.default_rng(count)
    density = Density(generator.integers([4, 3], size=(count, 2)), (4, 3))
    everything = np.stack(np.meshgrid(range(4), range(3), indexing="ij"), axis=-1).reshape(-1, 2)
    probabilities = np.exp(density.log_density(everything))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    drawn = density.draw(20000, np.random.RandomState(0)) @ [3, 1]
    assert np.bincount(drawn, minlength=12) / 20000 == pytest.approx(probabilities, abs=0.015)
