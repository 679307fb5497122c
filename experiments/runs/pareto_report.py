"""What `quantenv pareto` says of a front: its allocations, its hypervolume, and those that it is held against."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.runs.episodes import Episode
from experiments.runs.pareto_front import front, hypervolume, table_points
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.base import Evaluation
from quantenv.hardware import format_quantity
from quantenv.hardware.budget import feasible_interval

FORMAT = "quantenv-front-1"


@dataclass(frozen=True)
class Point:
    """An allocation on the front."""

    allocation: Allocation
    """Its bits."""
    cost: float
    """Its cost, SI units."""
    search: Evaluation
    """On the search split, which it was chosen by."""
    test: Evaluation
    """On the test split."""
    evaluation: int
    """Number of the evaluation that found it."""


@dataclass(frozen=True)
class Curve:
    """A front that the found one is held against."""

    costs: tuple[float, ...]
    """Ascending, SI units."""
    accuracies: tuple[float, ...]
    """On the search split, ascending."""
    mean_accuracy: float
    """See `ParetoReport.mean_accuracy`."""


@dataclass(frozen=True)
class ParetoReport:
    """A front and its comparison."""

    task: str
    agent: str
    seed: int
    evaluations: int
    """Allocations evaluated."""
    metric: str
    """The cost."""
    low: float
    """The cheapest allocation's cost: where the front starts, SI units."""
    high: float
    """Where it ends: the highest budget, or the dearest allocation's cost."""
    points: tuple[Point, ...]
    """The front, by ascending cost."""
    mean_accuracy: float
    """Hypervolume over the range of budgets: the accuracy on the search split that the front offers on average over
    budgets drawn uniformly from `low` to `high`, 0-1. Where it offers nothing, that counts as 0."""
    uniform: Curve
    """The front of the uniform allocations."""
    true: Curve | None
    """The front of all allocations, on a table task."""

    def to_json(self) -> str:
        """Returns the content of ``front.json``."""
        points = [
            {
                "evaluation": point.evaluation,
                "cost": point.cost,
                "search": _evaluation(point.search),
                "test": _evaluation(point.test),
                "allocation": point.allocation.to_dict(),
            }
            for point in self.points
        ]
        content: dict[str, Any] = {
            "format": FORMAT,
            "task": self.task,
            "agent": self.agent,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "metric": self.metric,
            "low": self.low,
            "high": self.high,
            "mean_accuracy": self.mean_accuracy,
            "hypervolume": self.mean_accuracy * (self.high - self.low),
            "uniform": asdict(self.uniform),
            "true": None if self.true is None else asdict(self.true),
            "points": points,
        }
        return json.dumps(content, indent=1)


def make_report(env: QuantizationEnv, metric: str, episodes: Sequence[Episode], agent: str, seed: int) -> ParetoReport:
    """Finds the front of what was evaluated and holds it against the uniform and, on a table, the true one.

    Args:
        env: The environment of the search; its evaluator is asked for the test split, and for uniform allocations,
            which are not charged.
        metric: The cost.
        episodes: What was evaluated.
        agent: Who searched.
        seed: Its seed.

    Raises:
        QuantenvError: If nothing was evaluated.
    """
    if not episodes:
        raise QuantenvError("The search ended before its first evaluation, so there is no front.")
    low, high = cost_range(env, metric)
    costs = np.array([episode.costs[metric] for episode in episodes])
    accuracies = np.array([episode.accuracy for episode in episodes])
    losses = np.array([episode.loss for episode in episodes])
    chosen = [episodes[index] for index in front(costs, accuracies, losses)]
    allocations = [episode.allocation(env.layers, *env.origin) for episode in chosen]
    tests = env.evaluator.evaluate(allocations, "test")
    points = tuple(
        Point(
            allocation,
            episode.costs[metric],
            Evaluation(episode.correct, episode.samples, episode.loss),
            test,
            episode.evaluation,
        )
        for allocation, episode, test in zip(allocations, chosen, tests, strict=True)
    )
    true = None
    if env.table is not None:
        true = _curve(*table_points(env.table, env.tables[metric], env.allowed), low, high)
    return ParetoReport(
        task=env.origin[0],
        agent=agent,
        seed=seed,
        evaluations=len(episodes),
        metric=metric,
        low=low,
        high=high,
        points=points,
        mean_accuracy=_mean_accuracy(costs, accuracies, low, high),
        uniform=_uniform(env, metric, low, high),
        true=true,
    )


def cost_range(env: QuantizationEnv, metric: str) -> tuple[float, float]:
    """Returns the cost of the cheapest allocation and that of the dearest one, or the environment's highest budget."""
    least, most = feasible_interval(env.tables[metric], env.allowed)
    limits = getattr(env, "level_limits", env.limits)
    return least, min(most, float(limits[-1]))


def print_report(report: ParetoReport, console: Console) -> None:
    """Prints the front, then what it is worth."""
    table = Table(title=f"Front of {report.task}: accuracy against {report.metric}", title_justify="left")
    for heading in (report.metric, "search accuracy", "test accuracy", "evaluation", "weight bits", "activation bits"):
        table.add_column(heading, justify="left" if heading.endswith("bits") else "right")
    for point in report.points:
        table.add_row(
            format_quantity(report.metric, point.cost),
            f"{point.search.accuracy:.2%}",
            f"{point.test.accuracy:.2%}",
            str(point.evaluation),
            _bits(point.allocation.weight_bits),
            _bits(point.allocation.activation_bits),
        )
    console.print(table)
    for sentence in verdicts(report):
        console.print(sentence)


def verdicts(report: ParetoReport) -> list[str]:
    """Says what the front offers on average over budgets, beside the uniform and the true one."""
    ends = " to ".join(format_quantity(report.metric, cost) for cost in (report.low, report.high))
    mean = report.mean_accuracy
    sentences = [
        f"{report.evaluations} evaluations by {report.agent}, seed {report.seed}. On average over budgets of {ends} "
        f"the front offers {mean:.2%} on the search split (its hypervolume over that range), uniform allocations "
        f"{report.uniform.mean_accuracy:.2%}."
    ]
    if report.true is not None:
        best = report.true.mean_accuracy
        sentences.append(
            f"The true front offers {best:.2%}: {100 * (best - mean):.2f} points more, {mean / best:.4f} of its "
            "hypervolume was found."
        )
    return sentences


def draw(report: ParetoReport, path: Path) -> None:
    """Draws the fronts on the search split as steps, to a PNG file."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = [point.cost for point in report.points], [point.search.accuracy for point in report.points]
    curves: list[tuple[str, Any, str, str]] = [
        ("uniform", (report.uniform.costs, report.uniform.accuracies), "#999999", "s"),
        (f"found by {report.agent}", found, "#0072B2", "o"),
    ]
    if report.true is not None:
        curves.append(("true front", (report.true.costs, report.true.accuracies), "#D55E00", ""))
    for label, (costs, accuracies), colour, marker in curves:
        ends = [*costs, report.high], [*accuracies, accuracies[-1]]
        axes.step(*ends, where="post", color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlabel(
        {
            "size": "size (bytes)",
            "latency": "latency (s)",
            "energy": "energy (J)",
            "memory": "peak activation memory (bytes)",
        }.get(report.metric, "BOPs")
    )
    axes.set_ylabel("accuracy on the search split")
    axes.set_title(f"{report.task}, {report.evaluations} evaluations")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _uniform(env: QuantizationEnv, metric: str, low: float, high: float) -> Curve:
    """The front of the allocations whose free layers all have the same bits; pinned and fixed ones keep theirs."""
    allocations = []
    for bits in env.bits:
        weights, activations = zip(*(_nearest(legal, bits) for legal in env.allowed), strict=True)
        allocations.append(Allocation.make(env.layers, weights, activations, *env.origin))
    evaluations = env.evaluator.evaluate(allocations)
    costs = np.array([env.tables[metric].cost(each.weight_bits, each.activation_bits) for each in allocations])
    accuracies = np.array([evaluation.accuracy for evaluation in evaluations])
    on_front = front(costs, accuracies)
    return _curve(costs[on_front], accuracies[on_front], low, high)


def _nearest(legal: np.ndarray, bits: int) -> tuple[int, int]:
    """Returns the pair, of those legal, bool (8, 8), whose bits are nearest to `bits` in sum; the lower of equals."""
    pairs = np.argwhere(legal) + 1
    weight, activation = pairs[np.abs(pairs - bits).sum(axis=1).argmin()]
    return int(weight), int(activation)


def _curve(costs: np.ndarray, accuracies: np.ndarray, low: float, high: float) -> Curve:
    return Curve(tuple(costs.tolist()), tuple(accuracies.tolist()), _mean_accuracy(costs, accuracies, low, high))


def _mean_accuracy(costs: np.ndarray, accuracies: np.ndarray, low: float, high: float) -> float:
    return hypervolume(costs, accuracies, high) / (high - low)


def _bits(bits: Sequence[int]) -> str:
    return " ".join(map(str, bits)) if len(set(bits)) > 1 else f"all {bits[0]}"


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {**asdict(evaluation), "accuracy": evaluation.accuracy}
