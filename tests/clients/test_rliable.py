"""rliable on `evaluations.parquet`, read by pandas: it comes to the leaderboard's numbers."""

import json

import numpy as np
import pandas as pd
import pytest
from rliable import library, metrics

from experiments.cli.main import main
from experiments.leaderboard.statistics import probability_of_improvement

SEEDS, EVALUATIONS = 8, 12
BUDGETS = [0.35, 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark")
    arguments = [
        "--tasks=[digits_table]",
        "--agents=[random,annealing]",
        f"--budgets={BUDGETS}",
        f"--seeds={SEEDS}",
        f"--evaluations={EVALUATIONS}",
        f"--checkpoints=[{EVALUATIONS}]",
        "--resamples=200",
        "--workers=1",
        f"--output={path}",
    ]
    assert main(["benchmark", *arguments]) == 0
    return path


def scores(folder):
    """Regret at the end of each search in percentage points, (seeds, budgets) by agent."""
    evaluations = pd.read_parquet(folder / "evaluations.parquet")
    assert len(evaluations) == 2 * len(BUDGETS) * SEEDS * EVALUATIONS
    regret = evaluations.groupby(["agent", "seed", "budget"])["regret"].min() * 100
    return {agent: regret[agent].unstack().to_numpy() for agent in ("random", "annealing")}


def test_interquartile_means_are_those_of_the_leaderboard(folder):
    rows = json.loads((folder / "leaderboard.json").read_text())["rows"]
    assert len(rows) == 4
    found = scores(folder)
    for row in rows:
        runs = found[row["agent"]][:, [BUDGETS.index(row["budget"])]]
        assert runs.shape == (SEEDS, 1)
        expected = metrics.aggregate_iqm(runs)
        assert row["regret"][str(EVALUATIONS)]["value"] == pytest.approx(expected, abs=1e-9)


def test_probability_of_improvement_and_intervals(folder):
    ours, theirs = (-scores(folder)[agent] for agent in ("annealing", "random"))  # larger is better
    expected = metrics.probability_of_improvement(ours, theirs)
    found = probability_of_improvement(list(ours.T), list(theirs.T), resamples=2000)
    assert found.value == pytest.approx(expected)
    points, intervals = library.get_interval_estimates(
        {"annealing": ours}, lambda runs: np.array([metrics.aggregate_iqm(runs)]), reps=200
    )
    low, high = intervals["annealing"].ravel()
    assert low <= points["annealing"][0] <= high
