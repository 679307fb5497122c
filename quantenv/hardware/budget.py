"""Budgets: upper bounds on a network's cost, read from what users write and checked before anything runs."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from quantenv.core.arguments import listed, one_of, plain, real_number
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError, shown
from quantenv.hardware.quantities import BASE_UNITS, METRICS, format_quantity, parse_quantity
from quantenv.hardware.rows import CostRows, stacked

__all__ = ["Budget", "BudgetLike", "check_feasible", "format_quantity", "parse_budgets"]

#: A cost may exceed its limit by this share: sums in different orders differ by rounding (about 1e-15), and a budget
#: equal to the cheapest allocation's cost must stay feasible.
TOLERANCE = 1e-9

#: One budget as users write it: a ratio (any number of Python's, NumPy's or torch's), or text.
BudgetLike = float | str


class HasRows(Protocol):
    """What budgets need to know of a metric's costs: a cost table, or peak memory."""

    @property
    def rows(self) -> CostRows:
        """Sums whose greatest is the cost."""
        ...

    @property
    def reference(self) -> float:
        """The network's cost with 8-bit weights and activations."""
        ...


@dataclass(frozen=True)
class Budget:
    """An upper bound on one metric.

    Raises:
        QuantenvError: If the metric is unknown, or the limit is not positive and finite.
    """

    metric: str
    """Name of the metric, one of `METRICS`."""
    limit: float
    """The bound, absolute, SI units."""

    def __post_init__(self) -> None:
        one_of(self.metric, "metric", METRICS)
        limit = real_number(self.limit, f"The {self.metric} budget")
        if not (math.isfinite(limit) and limit > 0):
            raise QuantenvError(f"The {self.metric} budget is {limit:g}; expected a positive, finite limit.")
        object.__setattr__(self, "limit", limit)


def parse_budgets(
    metric: Any,
    budget: Any,
    tables: Mapping[str, HasRows],
) -> tuple[Budget, ...]:
    """Reads one budget or several.

    A budget is a ratio of the network's cost at 8-bit weights and activations, in (0, 1] (a number, or text such as
    ``"0.4"``), or an absolute limit with a unit (``"18KiB"``, ``"3ms"``, ``"2mJ"``, ``"1.2GBOPs"``).

    Args:
        metric: One metric, a list, tuple or array of them, or ``"size,bops"``. Ignored when `budget` names metrics
            itself.
        budget: One budget for one metric; as many as metrics, as a list, a tuple, an array or ``"0.4,0.5"``; or a
            mapping from metrics to budgets, also as ``"size=0.4,latency=3ms"``.
        tables: The network's cost tables on the device, by metric.

    Returns:
        One absolute budget for each metric, in the order given.

    Raises:
        QuantenvError: If a metric is unknown, repeated or not defined by the device, the numbers of metrics and
            budgets differ, or a budget is malformed, out of range or of another metric's unit.
    """
    if isinstance(budget, Mapping):
        pairs = list(budget.items())
    elif isinstance(budget, str) and "=" in budget:
        pairs = _named_pairs(budget)
    else:
        pairs = _paired(metric, budget)
    if not pairs:
        raise QuantenvError("No budget was given: name at least one metric and its budget, such as size=0.4.")
    names = [name for name, _ in pairs]
    for name in names:
        one_of(name, "metric", METRICS)
        if names.count(name) > 1:
            raise QuantenvError(f"Metric {name!r} has more than one budget: give one.")
        if name not in tables:
            raise QuantenvError(
                f"The device does not define {name}; it defines {', '.join(tables)}. Choose one of these, or a "
                f"device whose YAML has a section {name!r}."
            )
    return tuple(Budget(name, _limit(name, value, tables[name].reference)) for name, value in pairs)


def check_feasible(budgets: Sequence[Budget], tables: Mapping[str, HasRows], allowed: np.ndarray) -> None:
    """Checks that some allowed allocation meets all budgets, exactly.

    The cost of an allocation is a sum over layers, so one budget can be met if and only if the sum of the layers'
    cheapest allowed entries meets it. That holds for several budgets at once, for terms of tensors that several layers
    read, and for a maximum of several sums, when every layer has one allowed option that is cheapest in all of them, as
    it always has in tables that grow with the bits; otherwise masks built on per-layer minima would promise allocations
    that do not exist, and the budgets are refused.

    Args:
        budgets: The budgets.
        tables: The network's costs, by metric; of its layers, or of L groups of them.
        allowed: Which bits each layer may get, bool (L, 8, 8) = [layer, weight bits - 1, activation bits - 1].

    Raises:
        InfeasibleBudgetError: If a budget is below the cheapest allowed allocation's cost (the feasible interval is
            printed), or the metrics disagree about a layer's cheapest option.
        QuantenvError: If `allowed` does not fit the tables, or leaves a layer without any option.
    """
    for budget in budgets:
        _check_allowed(allowed, tables[budget.metric])
        low, high = feasible_interval(tables[budget.metric], allowed)
        if low > budget.limit * (1 + TOLERANCE):
            raise InfeasibleBudgetError(_explain(budget, low, high, tables[budget.metric].reference))
    rows = stacked([tables[budget.metric].rows for budget in budgets]) if budgets else None
    if rows is not None and (len(rows.values) > 1 or rows.terms):
        _check_agreement([budget.metric for budget in budgets], rows, allowed)


def feasible_interval(table: HasRows, allowed: np.ndarray) -> tuple[float, float]:
    """Returns the least and the greatest cost of any allowed allocation, SI units.

    Args:
        table: The costs, of L layers or groups.
        allowed: Which bits each layer may get, bool (L, 8, 8), at least one option in each layer.
    """
    return float(table.rows.least(allowed).max()), float(table.rows.most(allowed).max())


def _named_pairs(text: str) -> list[tuple[str, BudgetLike]]:
    pairs: list[tuple[str, BudgetLike]] = []
    for item in _split(text):
        name, equals, value = item.partition("=")
        if not equals:
            raise QuantenvError(
                f"The budget {text!r} names a metric for some parts but not for {item!r}: "
                "write it like size=0.4,latency=3ms."
            )
        pairs.append((name.strip(), value.strip()))
    return pairs


def _paired(metric: Any, budget: Any) -> list[tuple[str, BudgetLike]]:
    metrics, budgets = _items(metric, "metric", "metrics"), _items(budget, "budget", "budgets")
    if len(metrics) != len(budgets):
        names = ", ".join(map(str, metrics[: len(METRICS)]))
        raise QuantenvError(
            f"Got {len(metrics)} metric(s) ({names}) but {len(budgets)} budget(s): "
            "give one budget for each metric, for example metric='size,bops' and budget='0.4,0.5'."
        )
    return list(zip(metrics, budgets, strict=True))


def _items(value: Any, name: str, of: str) -> list[Any]:
    given = plain(value)
    if isinstance(given, str):
        return _split(given)
    if isinstance(given, numbers.Number) or given is None:
        return [given]
    return listed(given, name, of)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _limit(metric: str, value: object, reference: float) -> float:
    unit = ""
    given = plain(value)
    if isinstance(given, str):
        number, unit = parse_quantity(metric, given)
    elif isinstance(given, numbers.Real | Decimal) and not isinstance(given, bool):
        number = real_number(given, f"The {metric} budget")
    else:
        raise QuantenvError(
            f"The {metric} budget is {shown(value)}; expected a ratio in (0, 1] or text with a unit, such as '0.4'."
        )
    if unit:
        if not (math.isfinite(number) and number > 0):
            raise QuantenvError(
                f"The {metric} budget {shown(value)} is out of range; expected a positive, finite limit."
            )
        return number
    if not 0 < number <= 1:  # also refuses nan
        raise QuantenvError(
            f"The {metric} budget {shown(given)} is no ratio of the 8-bit cost, which lies in (0, 1]; "
            f"an absolute limit needs a unit, such as {format_quantity(metric, reference / 2)!r}."
        )
    if reference == 0:
        raise QuantenvError(f"The {metric} cost at 8 bits is 0, so a ratio of it means nothing: choose another metric.")
    return number * reference


def _check_allowed(allowed: np.ndarray, table: HasRows) -> None:
    shape = table.rows.values.shape[1:]
    if allowed.shape != shape or allowed.dtype != bool:
        raise QuantenvError(
            f"The allowed options are {allowed.dtype} of shape {allowed.shape}; "
            f"expected bool of the tables' shape {shape}."
        )
    empty = np.flatnonzero(~allowed.any(axis=(1, 2)))
    if len(empty):
        raise QuantenvError(
            f"Layer(s) {', '.join(map(str, empty))} have no allowed bits: allow bit-widths that the device supports."
        )


def _explain(budget: Budget, low: float, high: float, reference: float) -> str:
    metric, unit = budget.metric, BASE_UNITS[budget.metric]

    def show(value: float, rounding: Callable[[float], float] = round) -> str:
        ratio = f", {rounding(value / reference * 1e4) / 1e4:.4f} of the 8-bit cost" if reference > 0 else ""
        return f"{format_quantity(metric, value)} ({value:.6g} {unit}{ratio})"

    # The least ratio is rounded up, so that what is printed can be used as a budget.
    return (
        f"No allowed allocation meets the budget {metric} <= {show(budget.limit)}. The feasible interval is from "
        f"{show(low, rounding=math.ceil)} to {show(high)}: raise the budget into it, allow fewer bits, or pin fewer "
        "layers."
    )


def _check_agreement(metrics: Sequence[str], rows: CostRows, allowed: np.ndarray) -> None:
    cheapest = allowed.copy()
    for values in rows.values:
        costs = np.where(allowed, values, np.inf)
        cheapest &= costs <= costs.min(axis=(1, 2), keepdims=True) * (1 + TOLERANCE)
    bits = np.where(allowed, np.arange(allowed.shape[-1]), allowed.shape[-1])
    for unit in {unit for term in rows.terms for unit in term.units}:  # and their tensors are smallest at the least
        cheapest[unit] &= bits[unit] == bits[unit].min()
    layers = np.flatnonzero(~cheapest.any(axis=(1, 2)))
    if len(layers):
        shown = ", ".join(map(str, layers[:6])) + (" ..." if len(layers) > 6 else "")
        raise InfeasibleBudgetError(
            f"The metrics {', '.join(metrics)} disagree about the cheapest bits of layer(s) "
            f"{shown} (counted from 0), so whether these budgets can be met together cannot be checked exactly. Budget "
            "only one of these metrics, or use a cost table that grows with the bits."
        )
