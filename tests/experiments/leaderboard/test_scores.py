"""Ranks, scores and what is said of them, on runs made up for it."""

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.markdown import to_markdown
from experiments.leaderboard.results import NOTHING, Case, Results, Runs, load_results
from experiments.leaderboard.scores import curve_points, curves, leaderboard
from experiments.leaderboard.suite import BenchmarkOptions
from quantenv.core.errors import QuantenvError
from tests.resealing import change_json

CASE = Case("t", "size", 0.5, 100.0, samples=200, best=190, exact=True, uniform=150, feasible=9, tied=1)


def made_up(found, case=CASE, **changes):
    """Results of agents whose runs find this many correct predictions, by agent: (seeds, 4)."""
    options = BenchmarkOptions(
        tasks=["t"], budgets=[0.5], seeds=3, evaluations=4, checkpoints=[2, 4], resamples=300, **changes
    )
    runs = {
        ("t", 0.5, agent): Runs(np.array(values), np.full(len(values), 0.25), np.full(len(values), 0.5), 0.0)
        for agent, values in found.items()
    }
    return Results(options, {("t", 0.5): case}, runs)


FOUND = {
    "random": [[150, 160, 160, 170], [NOTHING, NOTHING, 150, 150], [140, 140, 150, 160]],
    "sure": [[150, 190, 190, 190], [160, 190, 190, 190], [190, 190, 190, 190]],
    "twin": [[150, 180, 190, 190], [160, 190, 190, 190], [190, 190, 190, 190]],
}


def rows(found=FOUND, **changes):
    return {row["agent"]: row for row in leaderboard(made_up(found, **changes))["rows"]}


def test_agents_are_ranked_by_regret_at_the_last_checkpoint_then_before():
    assert [(row["rank"], name) for name, row in rows().items()] == [(1, "sure"), (2, "twin"), (3, "random")]


def test_regret_is_in_points_and_score_is_one_at_the_optimum_and_zero_at_uniform():
    found = rows()
    assert found["sure"]["regret"]["4"] == {"value": 0, "low": 0, "high": 0}
    assert found["random"]["regret"]["4"]["value"] == pytest.approx(15)  # the mean of 10, 15 and 20: three trim nothing
    assert found["sure"]["score"]["value"] == 1
    assert found["random"]["score"]["value"] == pytest.approx((20 + 0 + 10) / 3 / 40)
    assert CASE.score(np.array([150, 190, 110, NOTHING])).tolist() == [0, 1, -1, -math.inf]


def test_quartiles_are_those_of_the_seeds():
    found = rows()
    assert found["random"]["quartiles"]["4"] == pytest.approx({"median": 15, "low": 12.5, "high": 17.5})
    assert found["sure"]["quartiles"]["2"] == {"median": 0, "low": 0, "high": 0}
    assert found["random"]["quartiles"]["2"]["high"] is None  # one of three seeds has found nothing yet


def test_no_score_where_uniform_is_missing_or_best():
    for uniform in (None, 190):
        case = dataclasses.replace(CASE, uniform=uniform)
        assert case.score(np.array([150])) is None
        content = leaderboard(made_up(FOUND, case))
        assert content["rows"][0]["score"] is None
        assert content["overall"][0]["score"] is None


def test_what_has_no_feasible_result_is_null():
    regret = rows()["random"]["regret"]["2"]
    assert regret["value"] is None
    assert regret["high"] is None


def test_it_says_when_a_difference_is_within_the_interval():
    found = rows()
    assert found["twin"]["behind_best"]["within_interval"]
    assert not found["random"]["behind_best"]["within_interval"]
    assert found["random"]["improvement"] is None
    better = found["sure"]["improvement"]
    assert better["over"] == "random"
    assert better["4"] == {"value": 1, "low": 1, "high": 1, "within_interval": False}
    equal = rows({"random": FOUND["random"], "other": FOUND["random"]})["other"]["improvement"]["4"]
    assert equal["value"] == 0.5
    assert equal["within_interval"]


def test_evaluations_to_the_target_count_runs_that_never_arrive():
    found = rows()
    assert found["twin"]["evaluations_to"]["optimum"]["median"] == 2
    never = found["random"]["evaluations_to"]["optimum"]
    assert (never["reached"], never["median"], never["expected"]) == (0, None, None)


def test_agents_with_fewer_cases_rank_last():
    results = made_up(FOUND)
    other = dataclasses.replace(CASE, budget=0.7)
    runs = {**results.runs, ("t", 0.7, "random"): results.runs["t", 0.5, "random"]}
    content = leaderboard(Results(results.options, {**results.cases, ("t", 0.7): other}, runs))
    assert [row["agent"] for row in content["overall"]] == ["random", "sure", "twin"]


def test_the_profile_is_the_share_of_runs_with_at_most_a_regret():
    profiles = leaderboard(made_up(FOUND))["profiles"]
    share = dict(zip(profiles["regret"], profiles["agents"]["random"]["value"], strict=True))
    assert share[0] == 0
    assert share[20.0] == 1
    assert set(profiles["agents"]["sure"]["value"]) == {1.0}


def test_curves_fall_and_mirror_in_accuracy():
    content = curves(made_up(FOUND))
    assert content["evaluations"] == [1, 2, 3, 4]
    line = next(line for line in content["curves"] if line["agent"] == "twin")
    assert line["regret"]["value"] == sorted(line["regret"]["value"], reverse=True)
    np.testing.assert_allclose(line["accuracy"]["value"], 0.95 - np.array(line["regret"]["value"]) / 100)
    assert all(low <= high for low, high in zip(line["accuracy"]["low"], line["accuracy"]["high"], strict=True))


def test_curves_are_read_at_the_checkpoints_too():
    points = curve_points(1000, [200, 777])
    assert {1, 200, 777, 1000} <= set(points.tolist())
    assert len(points) < 70


def test_the_markdown_says_what_the_json_does():
    content = {
        "suite": dataclasses.asdict(made_up(FOUND).options),
        "refused": [{"agent": "x", "task": "t", "sentence": "It needs gradients."}],
        **leaderboard(made_up(FOUND)),
    }
    text = to_markdown(json.loads(json.dumps(content)))
    assert "| 1 | sure | 0.00 (0.00 to 0.00) |" in text
    assert "| 2 | twin ≈ |" in text
    assert "| 3 | random | none (" in text
    assert "| t | 0.5 | random | 25.00 (20.00 to none) | 15.00 (12.50 to 17.50) |" in text
    assert ">4 (>4 to >4), 0/3 runs" in text
    assert "Optimum of 9 feasible allocations, 1 as accurate: 95.00% of 200 samples" in text
    assert "- Not run: x on t: It needs gradients." in text


def test_results_are_read_back(benchmark):
    results = load_results(BenchmarkFolder.open(benchmark))
    assert results.agents == ["random", "reinforce"]
    for case in results.cases.values():
        for agent in results.agents:
            regret = results.regret(case, agent)
            assert regret.shape == (3, 12)
            assert (np.diff(regret) <= 0).all()
            assert (regret >= 0).all()


def test_files_that_do_not_belong_together_are_refused(benchmark_copy):
    change_json(benchmark_copy / "jobs.json", lambda content: content["jobs"].reverse())
    with pytest.raises(QuantenvError, match="does not hold the searches that"):
        load_results(BenchmarkFolder.open(benchmark_copy))
