"""What a setting's task tells besides the searches: costs, uniform allocations, the proxy's curve, the true front."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agents.search.choices import Choices
from agents.search.ilp import solve
from agents.search.problem import Problem
from agents.search.proxy import group_harms, measured_sensitivity
from experiments.reports.searches import Bits, Case, Point, Setting, undominated
from experiments.runs.comparison import best_uniform, costs_of, uniform_allocations
from experiments.runs.parts import make_env
from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.regret import Regret
from quantenv.evaluation import Evaluator, make_evaluator
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.evaluation.table.optimum import costs_of_rows, over_rows
from quantenv.evaluation.table.shipped import is_table, resolve_task
from quantenv.hardware.budget import TOLERANCE
from quantenv.sensitivity import Sensitivity
from quantenv.sensitivity.kinds import KINDS
from quantenv.tasks import Task

#: Budgets at which the proxy is solved and its answer evaluated.
PROXY_POINTS = 24


@dataclass
class CaseKnown:
    """What is known of one case."""

    limits: Mapping[str, float]
    """Budget of each metric, SI units."""
    uniform: Point | None
    """Best feasible uniform allocation on the search split; None if none is feasible."""
    uniform_test: float | None
    """Its accuracy on the test split, 0-1, where a table tells it."""
    optimum: Point | None
    """Best feasible allocation; None unless a table tells it."""
    even_bits: float
    """Bits that the budgets would buy if all decided layers got the same, between those on offer interpolated."""


@dataclass
class Known:
    """What is known of a setting; what is not is None or empty, and `missing` says why."""

    missing: list[str] = field(default_factory=list)
    """Why something is not known, a sentence each."""
    layers: tuple[LayerSpec, ...] | None = None
    """The quantizable layers, length L."""
    bits: tuple[int, ...] = ()
    """Bits on offer."""
    accuracy: float | None = None
    """Accuracy of the float network on the search split."""
    shares: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Share of each layer in the 8-bit cost, by metric, float64 (L,)."""
    uniform: Sequence[Point] = ()
    """The uniform allocations, over budget or not."""
    proxy: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """The proxy's answers over the budgets of each metric, evaluated, by ascending cost."""
    front: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """The true front by metric: costs, float64 (k,), and correct counts, int64 (k,), by ascending cost."""
    sensitivity: Sensitivity | None = None
    """Harm of each layer at each bit-width."""
    cases: Mapping[Case, CaseKnown] = field(default_factory=dict)
    """What is known of each case."""
    table: EvaluationTable | None = None
    """The table, if the task is one."""

    def test_accuracies(self, points: Sequence[Point]) -> np.ndarray | None:
        """Returns allocations' accuracy on the test split, float64 (n,), if a table tells it."""
        if self.table is None or "test" not in self.table.reference:
            return None
        allocations = [_allocation(self.table.layers, point.bits) for point in points]
        evaluations = TableEvaluator(self.table).evaluate(allocations, "test")
        return np.array([evaluation.accuracy for evaluation in evaluations])


def learn(setting: Setting, cases: Sequence[Case], measure: bool) -> Known:
    """Finds out what a setting's task tells.

    Args:
        setting: The setting.
        cases: Its cases.
        measure: Whether a network may be loaded and evaluated for it; tables need no evaluation.

    Returns:
        What is known.
    """
    known = Known()
    if not measure and not is_table(setting.task):
        known.missing.append(
            "Nothing was evaluated (--measure=false): no uniform allocations, no proxy, no sensitivities, no kinds of "
            "layers."
        )
        return known
    try:
        task = resolve_task(setting.task)
        evaluator = make_evaluator(setting.evaluator, task)
        if evaluator.identity != setting.identity:
            raise QuantenvError(
                f"the searches were evaluated under identity {setting.identity}, and the task here is another one "
                f"({evaluator.identity})."
            )
        envs = {case: make_env(case.train_options, task, evaluator)[1] for case in cases}
        everywhere = _unbounded(setting)
        _, env = make_env(everywhere.train_options, task, evaluator)
    except QuantenvError as error:
        known.missing.append(
            f"The task {setting.task} cannot be made here, so there are no uniform allocations, no proxy, no "
            f"sensitivities, no kinds of layers and no true front: {error}"
        )
        return known
    known.table, known.layers, known.accuracy = env.table, env.layers, env.reference.accuracy
    known.bits = env.bits
    known.shares = {metric: _shares(env, metric) for metric in setting.metrics}
    known.uniform = _evaluated(env, uniform_allocations(env))
    if env.table is None:
        known.missing.append(
            f"{setting.task} is no table task: nobody evaluated every allocation, so the true Pareto front and the "
            "optimum are not known."
        )
    else:
        known.front = {metric: _true_front(env, metric) for metric in setting.metrics}
    known.cases = {case: _case_known(known, env, evaluator) for case, env in envs.items()}
    try:
        known.sensitivity = measured_sensitivity(env)
        known.proxy = {
            metric: _proxy_curve(_metric_env(setting, metric, task, evaluator), metric, known.cases.values())
            for metric in setting.metrics
        }
    except QuantenvError as error:
        known.missing.append(f"The sensitivities or the proxy's curve are missing: {error}")
    return known


def sensitivity_text(sensitivity: Sensitivity, bits: int) -> str:
    """Says what a layer's sensitivity at some bits is, as the title of an axis."""
    return f"{KINDS[sensitivity.kind]}, layer alone at {bits} bits"


def probe_bits(harms: np.ndarray, offered: Sequence[int]) -> int | None:
    """Returns the fewest of the bits on offer, below 8, at which the harm (L, 8) of every layer is known, if any."""
    return next((bits for bits in sorted(offered) if bits < MAX_BITS and np.isfinite(harms[:, bits - 1]).all()), None)


def _unbounded(setting: Setting) -> Case:
    return Case(setting, ("1.0",) * len(setting.metrics))


def _metric_env(setting: Setting, metric: str, task: Task | EvaluationTable, evaluator: Evaluator) -> QuantizationEnv:
    """Makes the environment that bounds one metric only."""
    return make_env(_unbounded(replace(setting, metrics=(metric,))).train_options, task, evaluator)[1]


def _shares(env: QuantizationEnv, metric: str) -> np.ndarray:
    """Shares of the layers in the 8-bit cost; of a maximum, in the greatest sum; what several read, divided evenly."""
    rows = env.tables[metric].rows
    greatest = int(rows.cost_of(np.full((rows.values.shape[1], 2), MAX_BITS)).argmax())
    values = rows.values[greatest, :, -1, -1].copy()
    for term in rows.terms:
        values[list(term.units)] += term.values[greatest, -1] / len(term.units)
    return np.asarray(values / values.sum())


def _allocation(layers: Sequence[LayerSpec], bits: Bits) -> Allocation:
    weights, activations = zip(*bits, strict=True)
    return Allocation.make(layers, weights, activations)


def _evaluated(env: QuantizationEnv, allocations: Sequence[Allocation]) -> list[Point]:
    evaluations = env.evaluator.evaluate(list(allocations)) if allocations else []
    return [
        Point(allocation.bits, evaluation.correct, evaluation.loss, costs_of(env, allocation))
        for allocation, evaluation in zip(allocations, evaluations, strict=True)
    ]


def _case_known(known: Known, env: QuantizationEnv, evaluator: Evaluator) -> CaseKnown:
    limits = {budget.metric: budget.limit for budget in env.budgets}
    allocation = best_uniform(env, evaluator)
    uniform = _evaluated(env, [allocation])[0] if allocation else None
    test = known.test_accuracies([uniform]) if uniform else None
    best = None
    if env.table is not None:
        choice = Regret(env.table, env.budgets, env.tables, env.walk).optimum.best
        best = Point(choice.allocation.bits, choice.evaluation.correct, choice.evaluation.loss, choice.costs)
    return CaseKnown(limits, uniform, None if test is None else float(test[0]), best, _even_bits(env))


def _even_bits(env: QuantizationEnv) -> float:
    """Interpolates the cost of giving all decided layers the same bits; activations too where they are decided."""
    decided = np.isin(env.walk.group_of, env.walk.groups)
    held = np.array([np.argwhere(layer)[-1] for layer in env.allowed])  # what is pinned, and fixed activations
    options = np.array(env.bits)
    least = np.inf
    for budget in env.budgets:
        costs = []
        for bits in options:
            pairs = held.copy()
            pairs[decided, 0] = bits - 1
            if env.walk.mode != "weights":
                pairs[decided, 1] = bits - 1
            costs.append(float(env.tables[budget.metric].costs(pairs + 1)))
        least = min(least, float(np.interp(budget.limit, costs, options)))
    return least


def _proxy_curve(env: QuantizationEnv, metric: str, cases: Iterable[CaseKnown]) -> list[Point]:
    """Solves the proxy at budgets from the least to the 8-bit cost, and at those of the cases."""
    problem = Problem(env)
    choices = Choices(problem)
    knapsack = choices.knapsack(choices.harms(group_harms(env)))
    cheapest = float(choices.loads(choices.cheapest()[None]).max())
    shares = np.linspace(cheapest, 1 + TOLERANCE, PROXY_POINTS)
    asked = [case.limits[metric] / env.budgets[0].limit for case in cases]
    picks = {}
    for share in sorted({*shares.tolist(), *(share for share in asked if share >= cheapest)}):
        solution = solve(replace(knapsack, limits=share * (1 + TOLERANCE) - choices.pinned))
        picks[solution.options.tobytes()] = solution.options
    actions = choices.actions(np.array(list(picks.values())))
    allocations = [
        _allocation(env.layers, tuple(map(tuple, env.walk.per_layer(bits).tolist()))) for bits in problem.bits(actions)
    ]
    return sorted(_evaluated(env, allocations), key=lambda point: point.costs[metric])


def _true_front(env: QuantizationEnv, metric: str) -> tuple[np.ndarray, np.ndarray]:
    table = env.table
    assert table is not None
    rows = np.flatnonzero(over_rows(table, env.allowed, np.logical_and))
    costs = costs_of_rows(table, env.tables[metric])[rows]
    correct = table.correct["search"][rows].astype(np.int64)
    best = undominated(costs, correct)
    return costs[best], correct[best]
