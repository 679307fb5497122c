"""Plain sentences: does mixed precision beat uniform, does RL beat the baselines, and can the numbers tell?

Two sources of chance are kept apart. Other seeds: 95% bootstrap intervals over searches, which need at least
`LEAST_RUNS` of them. Other images: the binomial standard error of a difference of accuracies, taken as if the images
were different ones, which makes it too large, if anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.leaderboard.statistics import LEAST_RUNS, Estimate, bootstrap, difference, interquartile_mean
from experiments.reports.groups import BASELINE, LEARNER, UNIFORM, WARM, Group
from experiments.reports.known import CaseKnown, Known
from quantenv.hardware.budget import TOLERANCE

#: Half-width of a 95% interval in standard errors.
NORMAL = 1.96

BEATS, LOSES, UNDECIDED, UNKNOWN = "beats", "loses to", "is not told apart from", "is not compared with"


@dataclass(frozen=True)
class Verdict:
    """A comparison and what came of it."""

    question: str
    """What is compared: ``Mixed precision``, ``RL``."""
    outcome: str
    """One of the four outcomes."""
    sentence: str
    """All of it, with numbers."""


def mixed_against_uniform(groups: Sequence[Group], known: Known, case_known: CaseKnown | None) -> Verdict:
    """Compares the best allocations of a case's best agent with the best feasible uniform allocation."""
    question = "Mixed precision"
    searching = _repeated([group for group in groups if group.agent != UNIFORM])
    found = next((group for group in searching if any(search.best for search in group.searches)), None)
    if found is None:
        return Verdict(question, UNKNOWN, "Mixed precision is not judged: no search found a feasible allocation.")
    if case_known is None:
        return Verdict(
            question, UNKNOWN, "Mixed precision is not compared with uniform bits: the task could not be evaluated."
        )
    if case_known.uniform is None:
        return Verdict(
            question, BEATS, "Only mixed precision meets this budget: no uniform allocation does, whatever its bits."
        )
    points = [search.best for search in found.searches if search.best]
    samples, split, caveat = found.searches[0].samples, "search", ", on which both were chosen"
    accuracies, uniform = np.array([p.correct / samples for p in points]), case_known.uniform.correct / samples
    on_test = known.test_accuracies(points)
    if known.table is not None and on_test is not None and case_known.uniform_test is not None:
        accuracies, uniform = on_test, case_known.uniform_test
        samples = known.table.reference["test"].samples
        split, caveat = "test", ", chosen on the search split"
    estimate = bootstrap([accuracies - uniform])
    mean = uniform + float(estimate.value)
    error = NORMAL * math.sqrt((mean * (1 - mean) + uniform * (1 - uniform)) / samples)
    outcome, doubt = _judge(estimate, error, len(points))
    bits = "/".join(map(str, max(set(case_known.uniform.bits), key=case_known.uniform.bits.count)))
    return Verdict(
        question,
        outcome,
        f"Mixed precision {outcome} the best uniform allocation ({bits} bits){doubt}: {mean:.2%} by {found.label} "
        f"against {uniform:.2%} on the {split} split{caveat}, a difference of {_points(estimate, len(points))}; "
        f"sampling error of {samples:,} images: ±{100 * error:.2f} points.",
    )


def without_search(groups: Sequence[Group], known: Known, case_known: CaseKnown | None) -> str | None:
    """Says what the proxy's exact solution reaches without a search, and what there was to find; None if unknown."""
    metrics = groups[0].case.setting.metrics
    if case_known is None or len(metrics) > 1 or metrics[0] not in known.proxy:
        return None
    samples, limit = groups[0].searches[0].samples, case_known.limits[metrics[0]] * (1 + TOLERANCE)
    (answer, *_) = sorted(
        (point for point in known.proxy[metrics[0]] if point.costs[metrics[0]] <= limit),
        key=lambda point: -point.costs[metrics[0]],
    )
    best = max(group.best_accuracy for group in groups)
    optimum = case_known.optimum
    exact = "not known" if optimum is None else f"{optimum.correct / samples:.2%}"
    return (
        f"On the search split, the proxy's exact solution (ILP), which needs no search, has "
        f"{answer.correct / samples:.2%}; the best that any search found, {best:.2%}; the optimum is {exact}."
    )


def learners_against_baselines(groups: Sequence[Group], family: str = LEARNER) -> Verdict | None:
    """Compares the best agents of two families at equal counted evaluations; None if a family is missing."""
    ours, theirs = ([group for group in groups if group.family == wanted] for wanted in (family, BASELINE))
    if not ours:
        return None
    if not theirs:
        return Verdict(family, UNKNOWN, f"{family} is not compared with baselines: no baseline searched here.")
    last = min(group.evaluations for group in (*ours, *theirs))
    outcome, sentence = _compare(ours, theirs, last, family)
    early = max(1, last // 5)
    if last >= 10:
        sentence += f" Earlier, {_compare(ours, theirs, early, family)[1]}"
    return Verdict(family, outcome, sentence[0].upper() + sentence[1:])


def in_short(verdicts: Sequence[Verdict]) -> list[str]:
    """Sums verdicts up, one sentence for each question."""
    sentences = []
    for question, against in (
        ("Mixed precision", "the best uniform allocation"),
        (LEARNER, "the best baseline"),
        (WARM, "the best baseline"),
    ):
        outcomes = [verdict.outcome for verdict in verdicts if verdict.question == question]
        if outcomes:
            counts = [(outcome, outcomes.count(outcome)) for outcome in (BEATS, LOSES, UNDECIDED, UNKNOWN)]
            parts = [f"{outcome} it in {count}" for outcome, count in counts if count]
            cases = "the one case" if len(outcomes) == 1 else f"{len(outcomes)} cases"
            sentences.append(f"{question} against {against}, {cases}: {', '.join(parts)}.")
    return sentences


def _compare(ours: Sequence[Group], theirs: Sequence[Group], evaluations: int, family: str) -> tuple[str, str]:
    """Compares the best of each side after some evaluations, by the interquartile mean of their accuracy."""
    best = [
        max(_repeated(side), key=lambda group: float(interquartile_mean(group.accuracies_at(evaluations))))
        for side in (ours, theirs)
    ]
    values = [group.accuracies_at(evaluations) for group in best]
    means = [float(interquartile_mean(each)) for each in values]
    fewest = min(map(len, values))
    names = [f"{group.label} ({_accuracy(mean)})" for group, mean in zip(best, means, strict=True)]
    besides = [
        f"{group.label} measured {measured:,.0f} evaluations' worth of sensitivities besides"
        for group in best
        if (measured := max(search.measured for search in group.searches)) > 0
    ]
    remark = f"; {', '.join(besides)}" if besides else ""
    if not all(map(math.isfinite, means)):
        return UNKNOWN, f"after {evaluations:,} evaluations not all of {' and '.join(names)} had something feasible."
    estimate = difference([values[0]], [values[1]])
    outcome = _outcome(estimate)
    after = f"after {evaluations:,} evaluations {family} {outcome} the baselines on the search split"
    return outcome, f"{after}: {names[0]} against {names[1]}, {_points(estimate, fewest)}{remark}."


def _repeated(groups: Sequence[Group]) -> Sequence[Group]:
    """Returns the groups with enough searches for an interval, or all if there are none."""
    return [group for group in groups if len(group.searches) >= LEAST_RUNS] or groups


def _judge(estimate: Estimate, error: float, searches: int) -> tuple[str, str]:
    """Returns the outcome and what has to be said of it; both kinds of chance have to be ruled out."""
    size = abs(float(estimate.value))
    outcome = _outcome(estimate) if searches >= LEAST_RUNS else BEATS if estimate.value > 0 else LOSES
    if outcome == UNDECIDED or estimate.value == 0:
        return UNDECIDED, ""
    if size <= error:
        return UNDECIDED, ", as the difference is within the sampling error of the images"
    return outcome, ""


def _outcome(estimate: Estimate) -> str:
    return BEATS if estimate.low > 0 else LOSES if estimate.high < 0 else UNDECIDED


def _points(estimate: Estimate, searches: int) -> str:
    """Writes a difference of accuracies in percentage points, with its interval if there is one."""
    value = f"{100 * float(estimate.value):+.2f} points"
    if searches < LEAST_RUNS:
        count = "one search" if searches == 1 else f"{searches} searches"
        return f"{value} ({count}: too few for an interval)"
    return f"{value} (95% interval over searches {100 * float(estimate.low):+.2f} to {100 * float(estimate.high):+.2f})"


def _accuracy(value: float) -> str:
    return f"{value:.2%}" if math.isfinite(value) else "nothing feasible"
