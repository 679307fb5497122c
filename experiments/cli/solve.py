"""`quantenv solve`: the exact optimum of the additive proxy, of a problem file or of a task, as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.search.ilp import solve
from agents.search.knapsack import Knapsack, Solution
from agents.search.next_best import next_best
from agents.search.pareto import front
from experiments.cli.problem_file import FileProblem, Option, ProblemFile, option_key, read_problem_file
from experiments.options.console import results
from experiments.options.parsing import parse_options
from experiments.options.task_source import SOURCE, SourceOptions
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError, unknown_name
from quantenv.core.typed import check_fields, require_within

#: Objectives that differ by this share are the same but for rounding.
SAME = 1e-9


@dataclass(frozen=True)
class SolveOptions(SourceOptions):
    """Finds the bits of least summed harm within budgets, exactly, by an integer linear program; prints JSON.

    A problem FILE.json is an object with the keys: perturbation, {bits: [harm of each layer]}, null where a layer lacks
    the option; cost, {metric: {bits: [cost of each layer]}}; problems, [{cost: metric, budget: number}], several
    budgets at once as {cost: [metrics], budget: [numbers]} or {budget: {metric: number}}, with published_bits and
    published_objective where there is an answer to compare with. It may have: layers, their names; bits, a list of the
    options (by default those of perturbation), each a number such as 4, or weight and activation bits such as [4, 8],
    "4/8" as a key; equal_bits, lists of layers that share their bits; pinned, {layer: bits}. Any other key may stand
    beside them. Harms and costs add up over the layers, in any unit; less is better.
    """

    problem: str
    """Path of a problem file (.json), or a task: a name from `quantenv tasks`, or the path of a table file."""
    pareto: str | None = None
    """Instead of solving for budgets: a metric, whose Pareto curve is printed, the least harm at every budget."""
    top: int = 1
    """Number of best solutions to list for each problem, in order."""
    time_limit: float | None = None
    """Seconds for each problem, after which the best solution so far is printed, with "proven": false."""
    metric: str | list[str] | None = None
    """Of a task: what the budget bounds, as size (the default), bops, latency or energy; several as "size,latency"."""
    budget: float | str | list[float | str] | dict[str, float | str] | None = None
    """Of a task: upper bound; a ratio of the cost at 8 bits (by default 0.4), an absolute limit such as 18KiB, or
    several as "size=0.4,latency=3ms"."""
    sensitivity: str | None = None
    """Of a task: what harm is, a kind of sensitivity; by default the one that ranks allocations best."""
    device: str | None = None
    """Of a task: whose costs count; by default generic."""
    decisions: str | None = None
    """Of a task: what is decided: weights (the default; activations stay at 8 bits) or joint."""
    bits: list[int] | None = None
    """Of a task: bit-widths to choose from, as [2,4,8]; by default 2 to 8, or those of a table."""
    pinned: str | dict[str, int] | None = None
    """Of a task: layers that are not decided: first_last (both at 8 bits), or bits by layer name."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "top")
        if self.time_limit is not None and not self.time_limit > 0:
            raise QuantenvError(f"--time_limit is {self.time_limit:g}; expected a number of seconds above 0.")
        if self.time_limit is not None and self.top > 1:
            raise QuantenvError("--time_limit is about one solution: leave it out, or --top.")


#: Options that only tasks have.
OF_TASKS = ("metric", "budget", "sensitivity", "device", "decisions", "bits", "pinned", *SOURCE)


def main(arguments: Sequence[str]) -> int:
    """Prints the solutions.

    Args:
        arguments: The command line after ``solve``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options or the file.
        InfeasibleBudgetError: If no allocation meets a problem's budgets; the other problems' solutions are printed.
    """
    options = parse_options(SolveOptions, "solve", arguments)
    infeasible = None
    path = Path(options.problem)
    if path.suffix == ".json" or (path.is_file() and path.suffix != ".npz"):
        content, infeasible = _of_file(options)
    else:
        content = _of_task(options)
    results().print(json.dumps(content, indent=1), markup=False, highlight=False, soft_wrap=True)
    if infeasible is not None:
        raise infeasible
    return 0


def _of_file(options: SolveOptions) -> tuple[dict[str, Any], InfeasibleBudgetError | None]:
    given = [name for name in OF_TASKS if getattr(options, name) is not None]
    if given:
        raise QuantenvError(f"--{given[0]} is about tasks, and {options.problem} is a problem file: leave it out.")
    file = read_problem_file(options.problem)
    content: dict[str, Any] = {"file": Path(options.problem).name, "layers": list(file.layers)}
    if options.pareto is not None:
        if options.pareto not in file.costs:
            raise unknown_name("cost to sweep:", options.pareto, file.costs)
        points = front(file.knapsack([options.pareto], [math.inf]))
        content["pareto"] = {
            "cost": options.pareto,
            "points": [_entry(point, file.options) | {"cost": float(point.costs[0])} for point in points],
        }
        return content, None
    if not file.problems:
        raise QuantenvError(f"{options.problem}: problems is missing or empty; expected a cost and a budget for each.")
    content["problems"], infeasible = [], None
    for problem in file.problems:
        entry: dict[str, Any] = {key: problem.content[key] for key in ("cost", "budget") if key in problem.content}
        entry = {"metric" if key == "cost" else key: value for key, value in entry.items()}
        try:
            knapsack = file.knapsack(problem.metrics, problem.limits)
            solutions = _solutions(knapsack, options)
        except InfeasibleBudgetError as error:
            entry["infeasible"] = str(error)
            infeasible = infeasible or InfeasibleBudgetError(f"{options.problem}: {problem.place}: {error}")
        else:
            entries = [
                _entry(solution, file.options) | {"cost": _as_given(problem, solution.costs), "proven": solution.proven}
                for solution in solutions
            ]
            entry |= entries[0]
            if options.top > 1:
                entry["top"] = entries
            if problem.published is not None:
                entry["published"] = _compare(file, problem, knapsack, solutions[0])
        content["problems"].append(entry)
    verdicts = [entry["published"]["verdict"] for entry in content["problems"] if "published" in entry]
    if verdicts:
        content["published"] = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    return content, infeasible


def _solutions(knapsack: Knapsack, options: SolveOptions) -> Sequence[Solution]:
    if options.top > 1:
        return next_best(knapsack, options.top)
    return [solve(knapsack, math.inf if options.time_limit is None else options.time_limit)]


def _entry(solution: Solution, bits: Sequence[Option]) -> dict[str, Any]:
    return {
        "bits": [bits[option] if isinstance(bits[option], int) else list(bits[option]) for option in solution.options],
        "objective": solution.objective,
    }


def _as_given(problem: FileProblem, costs: np.ndarray) -> Any:
    """Returns costs in the form in which the problem has its budget: a number, a list or by metric."""
    budget = problem.content["budget"]
    if isinstance(budget, dict):
        return dict(zip(problem.metrics, costs.tolist(), strict=True))
    return costs.tolist() if isinstance(budget, list) else float(costs[0])


def _compare(file: ProblemFile, problem: FileProblem, knapsack: Knapsack, found: Solution) -> dict[str, Any]:
    """Says how the published answer compares with the one found."""
    assert problem.published is not None
    options = np.array(problem.published)
    layers = np.arange(len(options))
    objective = math.fsum(knapsack.harms[layers, options])
    groups = knapsack.groups
    choice = options[[members[0] for members in groups.members]]
    kept = all(len(set(options[list(members)])) == 1 for members in groups.members)
    tolerance = SAME * max(abs(objective), abs(found.objective))
    if not kept or not groups.feasible(choice):
        verdict = "infeasible"
    elif (options == found.options).all():
        verdict = "equal"
    elif found.objective < objective - tolerance:
        verdict = "bettered"
    else:
        verdict = "as good" if found.objective <= objective + tolerance else "better than found in the time allowed"
    compared: dict[str, Any] = {
        "verdict": verdict,
        "objective": objective if math.isfinite(objective) else None,
        "cost": _as_given(problem, np.array([math.fsum(cost[layers, options]) for cost in knapsack.costs])),
    }
    stated = problem.content.get("published_objective")
    if stated is not None and abs(stated - objective) > SAME * max(abs(stated), abs(objective)):
        compared["remark"] = f"published_objective is {stated}, which is not that of published_bits."
    if verdict != "equal":
        differing = [file.layers[layer] for layer in np.flatnonzero(options != found.options)]
        compared["differing_layers"] = differing
        compared["bits"] = [option_key(file.options[option]) for option in options]
    return compared


def _of_task(options: SolveOptions) -> dict[str, Any]:
    """Solves a task's proxy."""
    from experiments.cli.task_proxy import TaskProxy  # torch, which problem files do without
    from quantenv.evaluation.table.shipped import resolve_task

    budget: Any = 0.4 if options.budget is None else options.budget
    metric: Any = options.metric or "size"
    if options.pareto is not None:
        if options.metric is not None or options.budget is not None:
            raise QuantenvError("--pareto goes through all budgets of its metric: leave --metric and --budget out.")
        metric, budget = options.pareto, 1.0
    proxy = TaskProxy(
        resolve_task(options.problem, options.source),
        metric,
        budget,
        options.sensitivity,
        device=options.device or "generic",
        decisions=options.decisions or "weights",
        bits=options.bits,
        pinned=options.pinned,
    )
    content = proxy.description()
    if options.pareto is not None:
        points = front(replace(proxy.knapsack, limits=np.full(1, np.inf)))
        return content | {"pareto": {"metric": metric, "points": [proxy.described(point) for point in points]}}
    solutions = _solutions(proxy.knapsack, options)
    entries = [proxy.described(solution) | {"proven": solution.proven} for solution in solutions]
    content |= {"budget": {budget.metric: budget.limit for budget in proxy.env.budgets}, **entries[0]}
    content |= {"top": entries} if options.top > 1 else {}
    return content | {"allocation": proxy.allocation(solutions[0]).to_dict()}
