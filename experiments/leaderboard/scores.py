"""The leaderboard: agents ranked by regret, with intervals, and what else follows from a benchmark's evaluations.

Everything is in percentage points of search accuracy unless it says otherwise. No number here reads a clock but those
under ``timing``: the rest is the same, to the bit, whenever it is computed from the same evaluations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.leaderboard.results import Case, Results
from experiments.leaderboard.statistics import (
    Estimate,
    bootstrap,
    difference,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    time_to_target,
)

FORMAT = "quantenv-leaderboard-1"
#: Points of an anytime curve, about evenly spaced in the logarithm of evaluations.
CURVE_POINTS = 60
#: Regrets at which performance profiles are read, percentage points.
THRESHOLDS = np.concatenate([[0.0], np.geomspace(0.05, 20, 40)])


def leaderboard(results: Results) -> dict[str, Any]:
    """Returns the content of `leaderboard.json`, but for what was refused and the environment.

    Args:
        results: A finished benchmark.

    Returns:
        ``cases``; ``rows``, one for each agent in each case, best first; ``overall``, the agents over all cases; and
        ``timing``.
    """
    rows = [row for case in results.cases.values() for row in _case_rows(results, case)]
    return {
        "format": FORMAT,
        "checkpoints": results.options.read_at,
        "cases": [asdict(case) | {"sampling_error": case.sampling_error} for case in results.cases.values()],
        "rows": rows,
        "overall": _overall(results),
        "profiles": _profiles(results),
        "timing": _timing(results),
    }


def curves(results: Results) -> dict[str, Any]:
    """Returns the content of `curves.json`: anytime curves of the best feasible allocation so far.

    Args:
        results: A finished benchmark.

    Returns:
        ``evaluations``, at which curves are read, and ``curves``: accuracy (0-1) and regret of each agent in each case,
        interquartile means with intervals; null where nothing feasible was found.
    """
    points = curve_points(results.options.evaluations, results.options.read_at)
    lines = []
    for (task, budget), case in results.cases.items():
        for agent in _agents_in(results, case):
            regret = results.regret(case, agent)[:, points - 1]
            estimate = bootstrap([regret], resamples=results.options.resamples)
            best = 100 * case.best / case.samples
            accuracy = Estimate(*((best - part) / 100 for part in (estimate.value, estimate.high, estimate.low)))
            lines.append(
                {
                    "task": task,
                    "metric": case.metric,
                    "budget": budget,
                    "agent": agent,
                    "regret": _interval(estimate),
                    "accuracy": _interval(accuracy),
                }
            )
    return {"format": "quantenv-curves-1", "evaluations": points.tolist(), "curves": lines}


def curve_points(evaluations: int, checkpoints: Sequence[int]) -> np.ndarray:
    """Returns the evaluations at which curves are read, ascending, int64."""
    spaced = np.geomspace(1, evaluations, CURVE_POINTS).round().astype(np.int64)
    return np.unique(np.concatenate([spaced, checkpoints, [evaluations]]))


def _case_rows(results: Results, case: Case) -> list[dict[str, Any]]:
    """Returns the rows of a case, ranked by regret at the checkpoints from the last, then by time to the optimum."""
    options, agents = results.options, _agents_in(results, case)
    targets = {"optimum": 0.0, "sampling_error": case.sampling_error}
    times = {
        agent: {
            name: time_to_target(results.regret(case, agent), target, options.resamples)
            for name, target in targets.items()
        }
        for agent in agents
    }
    at = {agent: results.regret(case, agent)[:, np.array(options.read_at) - 1] for agent in agents}
    ranked = sorted(
        agents, key=lambda agent: (*interquartile_mean(at[agent])[::-1], times[agent]["optimum"].median, agent)
    )
    rows = []
    for rank, agent in enumerate(ranked, start=1):
        regret = bootstrap([at[agent]], resamples=options.resamples)
        behind = difference([at[agent][:, -1]], [at[ranked[0]][:, -1]], options.resamples)
        score = case.score(results.runs[case.task, case.budget, agent].found[:, options.read_at[-1] - 1])
        rows.append(
            {
                "task": case.task,
                "metric": case.metric,
                "budget": case.budget,
                "rank": rank,
                "agent": agent,
                "runs": len(at[agent]),
                "regret": {str(c): _interval(regret, index) for index, c in enumerate(options.read_at)},
                "quartiles": {str(c): _quartiles(at[agent][:, index]) for index, c in enumerate(options.read_at)},
                "score": None if score is None else _interval(bootstrap([score], resamples=options.resamples)),
                "behind_best": _interval(behind) | {"within_interval": _includes(behind, 0.0) or rank == 1},
                "improvement": _improvement(results, [case], agent),
                "evaluations_to": {name: _plain(asdict(time)) for name, time in times[agent].items()},
                "equivalent_evaluations": results.runs[case.task, case.budget, agent].equivalent_evaluations,
            }
        )
    return rows


def _overall(results: Results) -> list[dict[str, Any]]:
    """Returns the agents over all of their cases, each case a stratum, ranked by mean regret; fewer cases rank last."""
    options = results.options
    rows: list[dict[str, Any]] = []
    for agent in results.agents:
        cases = _cases_of(results, agent)
        at = [results.regret(case, agent)[:, np.array(options.read_at) - 1] for case in cases]
        scores = _scores(results, agent)
        regret = bootstrap(at, resamples=options.resamples)
        rows.append(
            {
                "agent": agent,
                "cases": len(cases),
                "regret": {str(c): _interval(regret, index) for index, c in enumerate(options.read_at)},
                "score": _interval(bootstrap(scores, resamples=options.resamples)) if scores else None,
                "improvement": _improvement(results, cases, agent),
                "reached": {
                    name: sum(int((results.regret(case, agent)[:, -1] <= target(case)).sum()) for case in cases)
                    for name, target in (("optimum", lambda case: 0.0), ("sampling_error", lambda c: c.sampling_error))
                },
                "runs": sum(len(values) for values in at),
            }
        )

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        means = [row["regret"][str(c)]["value"] for c in reversed(options.read_at)]
        return (-row["cases"], *(math.inf if mean is None else mean for mean in means), row["agent"])

    rows.sort(key=order)
    best = rows[0]["agent"] if rows else None
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
        row["behind_best"] = _behind(results, row["agent"], best) if best else None
    return rows


def _behind(results: Results, agent: str, best: str) -> dict[str, Any] | None:
    """Compares an agent with the best one over the cases that both have searched; None if there are none."""
    cases = [case for case in _cases_of(results, agent) if best in _agents_in(results, case)]
    if not cases:
        return None
    last = results.options.read_at[-1] - 1
    ours, theirs = ([results.regret(case, name)[:, last] for case in cases] for name in (agent, best))
    behind = difference(ours, theirs, results.options.resamples)
    return _interval(behind) | {"within_interval": _includes(behind, 0.0) or agent == best}


def _profiles(results: Results) -> dict[str, Any]:
    """Returns the share of each agent's runs, over all cases, with at most each regret at the last checkpoint."""
    last, lines = results.options.read_at[-1] - 1, {}
    for agent in results.agents:
        regret = [results.regret(case, agent)[:, last] for case in _cases_of(results, agent)]
        profile = performance_profile([-values for values in regret], -THRESHOLDS, results.options.resamples)
        lines[agent] = _interval(profile)
    return {"regret": THRESHOLDS.tolist(), "agents": lines}


def _scores(results: Results, agent: str) -> list[np.ndarray]:
    """Returns an agent's normalised scores at the last checkpoint in every case that defines one, (seeds,) each."""
    last = results.options.read_at[-1] - 1
    scores = [
        case.score(results.runs[case.task, case.budget, agent].found[:, last]) for case in _cases_of(results, agent)
    ]
    return [score for score in scores if score is not None]


def _improvement(results: Results, cases: Sequence[Case], agent: str) -> dict[str, Any] | None:
    """Returns the probability that a run of an agent has less regret than one of the agent compared with."""
    other = results.options.compare_with
    cases = [case for case in cases if other in _agents_in(results, case)]
    if agent == other or not cases:
        return None
    found = {}
    for checkpoint in results.options.read_at:
        ours, theirs = ([-results.regret(case, name)[:, checkpoint - 1] for case in cases] for name in (agent, other))
        estimate = probability_of_improvement(ours, theirs, results.options.resamples)
        found[str(checkpoint)] = _interval(estimate) | {"within_interval": _includes(estimate, 0.5)}
    return {"over": other, **found}


def _timing(results: Results) -> list[dict[str, Any]]:
    """Returns the median wall time of a search in each case, seconds."""
    return [
        {
            "task": task,
            "budget": budget,
            "agent": agent,
            "environment_seconds": float(np.median(runs.environment_seconds)),
            "agent_seconds": float(np.median(runs.agent_seconds)),
        }
        for (task, budget, agent), runs in sorted(results.runs.items())
    ]


def _agents_in(results: Results, case: Case) -> list[str]:
    return [agent for agent in results.agents if (case.task, case.budget, agent) in results.runs]


def _cases_of(results: Results, agent: str) -> list[Case]:
    return [case for case in results.cases.values() if (case.task, case.budget, agent) in results.runs]


def _includes(estimate: Estimate, value: float) -> bool:
    """Whether an interval holds a value; one without ends does: nothing can be told apart."""
    return not (estimate.low > value or estimate.high < value)


def _interval(estimate: Estimate, index: int | None = None) -> dict[str, Any]:
    pick = (lambda values: values) if index is None else (lambda values: values[index])
    parts = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: _plain(np.asarray(pick(values)).tolist()) for name, values in parts.items()}


def _quartiles(regret: np.ndarray) -> dict[str, Any]:
    """Returns the quartiles of the seeds, interpolated linearly; null where seeds without a result enter."""
    # Infinite regrets have no differences to interpolate; a regret of over 100 points comes of what stands for them.
    low, median, high = np.quantile(np.minimum(regret, 1e9), [0.25, 0.5, 0.75]).tolist()
    parts = {"median": median, "low": low, "high": high}
    return {name: value if value <= 100 else None for name, value in parts.items()}


def _plain(value: Any) -> Any:
    """Makes JSON of numbers: None for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
