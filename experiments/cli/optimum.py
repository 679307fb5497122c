"""`quantenv optimum`: the best feasible allocation of a table, exactly, and what it is worth."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from experiments.options.console import results
from experiments.options.parsing import parse_options
from experiments.runs.final_table import budgets_text, limits
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.optimum import Choice, Optimum, optimum, standard_error
from quantenv.evaluation.table.shipped import get_table
from quantenv.hardware import METRICS, compile_costs, format_quantity, load_device, parse_budgets


@dataclass(frozen=True)
class OptimumOptions:
    """Finds the best allocation of a table task within a budget by looking at every one.

    By accuracy, ties by loss. The standard error is binomial: how much the accuracy would scatter over other samples.
    """

    task: str = "digits_table"
    """A table task from `quantenv tasks`, or the path of a table file."""
    metric: str | list[str] = "size"
    """What the budget bounds: size, bops, latency, energy or memory; several as "size,latency"."""
    budget: float | str | list[float | str] | dict[str, float | str] = 0.4
    """Upper bound: a ratio of the cost at 8 bits, in (0, 1]; an absolute limit such as 18KiB or 3ms; or several as
    "size=0.4,latency=3ms", which replaces --metric."""
    device: str = "generic"
    """Whose costs count: a name from `quantenv devices`, or the path of a YAML file."""
    split: str = "search"
    """Split to choose on: search, as agents do, or test, for what could be reached there."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Prints the optimum.

    Args:
        arguments: The command line after ``optimum``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, or a table that is missing or damaged.
        InfeasibleBudgetError: If no allocation of the table meets the budget.
    """
    options = parse_options(OptimumOptions, "optimum", arguments)
    device = load_device(options.device)
    table = get_table(options.task)
    costs = compile_costs(table.layers, table.activations, device)
    budgets = parse_budgets(options.metric, options.budget, costs)
    supported = np.broadcast_to(device.supports, (len(table.layers), *device.supports.shape))
    found = optimum(table, budgets, costs, options.split, supported)
    say = results()
    if options.json:
        content = {
            "table": table.name,
            "table_hash": table.hash,
            "split": found.split,
            "budgets": limits(budgets),
            "rows": found.rows,
            "feasible": found.feasible,
            "tied": found.tied,
            "best": _as_json(found.best),
            "uniform": None if found.uniform is None else _as_json(found.uniform),
        }
        say.print(json.dumps(content, indent=1), markup=False, highlight=False, soft_wrap=True)
        return 0
    say.print(f"{table.name}, {found.split} split, budget {budgets_text(limits(budgets))}", highlight=False)
    say.print(_drawn(table, found), highlight=False)
    ties = "no other is" if found.tied == 1 else f"{found.tied - 1:,} more are"
    say.print(
        f"{found.feasible:,} of {found.rows:,} allocations are feasible; {ties} as accurate as the best.",
        highlight=False,
    )
    return 0


def _as_json(choice: Choice) -> dict[str, Any]:
    return {
        "row": choice.index,
        "allocation": choice.allocation.to_dict(),
        **asdict(choice.evaluation),
        "accuracy": choice.evaluation.accuracy,
        "standard_error": standard_error(choice.evaluation),
        "costs": dict(choice.costs),
    }


def _drawn(table: EvaluationTable, found: Optimum) -> Table:
    choices = {"best": found.best} | ({} if found.uniform is None else {"best uniform": found.uniform})
    drawn = Table("", *choices)
    for group, layers in zip(table.groups, table.members, strict=True):
        name = group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} tied"
        drawn.add_row(f"bits of {name}", *(str(c.allocation.weight_bits[layers[0]]) for c in choices.values()))
    drawn.add_section()
    rows = [c.evaluation for c in choices.values()]
    drawn.add_row("accuracy", *(f"{row.accuracy:.2%} ± {standard_error(row):.2%}" for row in rows))
    drawn.add_row("correct", *(f"{row.correct} of {row.samples}" for row in rows))
    drawn.add_row("cross-entropy", *(f"{row.loss:.4f}" for row in rows))
    for metric in METRICS:
        if metric in found.best.costs:
            drawn.add_row(metric, *(format_quantity(metric, c.costs[metric]) for c in choices.values()))
    return drawn
