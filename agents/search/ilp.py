"""Exact solution of the additive proxy by HiGHS, through `scipy.optimize.milp`.

HiGHS works with absolute tolerances: an answer within 1e-6 of the optimum, or over a limit by 1e-6, is as good as any
to it. So objective and limits are scaled to where 1e-6 is next to nothing, and no answer is believed before its costs
were summed here.
"""

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from agents.search.knapsack import Groups, Knapsack, Solution
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError

#: What the optimum and the limits become for HiGHS, whose tolerances are 1e-6 and less: 1e-10 of either.
SCALE = 1e4

#: Options for each group in the first core, on average. From 2 to 5, the times differ little.
CORE = 3


def solve(problem: Knapsack, time_limit: float = math.inf) -> Solution:
    """Finds a feasible solution of least harm.

    The linear relaxation gives Lagrange multipliers of the budgets, and these by how much each option raises a lower
    bound of the harm. HiGHS solves the integer program over the few options that raise it least, the core (Balas and
    Zemel, Operations Research 28, 1980), and then over all that its answer does not exclude, if there are others. The
    harm is least up to 1e-10 of what the budgets cost. What several layers cost together becomes binary variables and
    rows of the same program (`Groups.plain`), so that the optimum is exact there, too.

    Args:
        problem: The problem.
        time_limit: Seconds after which the best solution so far is returned, with the `bound` proven by then.

    Returns:
        The solution. Its costs meet every limit, whatever HiGHS's tolerances.

    Raises:
        InfeasibleBudgetError: If no solution meets the limits; the least feasible ones are named.
        QuantenvError: If the time ran out before any solution was found.
    """
    deadline = time.monotonic() + time_limit
    unbounded = problem.groups.harms.argmin(axis=1)
    if problem.groups.feasible(unbounded):
        return problem.solution(unbounded)
    groups = problem.groups.plain
    duals = multipliers(groups)
    if duals is None:
        raise _infeasible(problem)
    bound, raised = lagrangian(groups, duals)
    margin = 1e-9 * float(np.ptp(groups.harms[groups.fitting]))  # of rounding: what is in doubt is kept
    ascending = np.sort(raised[groups.fitting])
    size, best = CORE * len(raised), None
    reach = ascending[min(size, len(ascending)) - 1]
    while True:
        choice, complete = _search(groups, raised <= reach, bound, deadline)
        if choice is not None:
            best = choice
        if not complete:
            break
        if best is not None:
            needed = float(groups.harm(best)) - bound + margin
            if reach >= min(needed, ascending[-1]):
                return problem.solution(best)
            reach = needed
        elif reach < ascending[-1]:
            size *= 4
            reach = ascending[min(size, len(ascending)) - 1]
        else:
            raise _infeasible(problem)
    if best is None:
        raise QuantenvError(f"No solution was found within {time_limit:g} s: allow more time.")
    return problem.solution(best, bound)


def multipliers(groups: Groups) -> np.ndarray | None:
    """Returns the budgets' Lagrange multipliers in the linear relaxation, harm per cost, float64 (M,), >= 0.

    None if the relaxation, and so the problem, has no solution.
    """
    if not groups.fitting.any(axis=1).all():
        return None
    program = _Program(groups, groups.fitting, -math.inf)
    ones = np.ones(len(groups.members))
    found = linprog(program.harms, program.costs, program.limits, program.one_each, ones, (0, None))
    if found.status == 2:
        return None
    duals = np.zeros(len(groups.limits))
    if found.status == 0:  # any multipliers >= 0 give a bound, so without an answer they stay 0
        duals[program.rows] = np.maximum(-found.ineqlin.marginals, 0.0) * program.cost_scale / program.harm_scale
    return duals


def lagrangian(groups: Groups, duals: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns a lower bound of the optimum, and by how much each option raises it, float64 (G, N).

    Args:
        groups: The problem, each group with an option that fits.
        duals: Multipliers of the budgets, >= 0, float64 (M,).
    """
    priced = duals > 0
    values = groups.harms + np.tensordot(duals[priced], groups.costs[priced], axes=1)
    values[~groups.fitting] = np.inf
    least = values.min(axis=1)
    return float(least.sum() - duals[priced] @ groups.room[priced]), values - least[:, None]


class _Program:
    """The integer program over some of the options, scaled for HiGHS's absolute tolerances."""

    def __init__(self, groups: Groups, kept: np.ndarray, bound: float) -> None:
        """Builds the arrays.

        Harms and costs are counted from each group's least, so what they are compared with is only what can be decided.

        Args:
            groups: The problem.
            kept: Options to choose from, bool (G, N), at least one in each group.
            bound: Lower bound of the harm, -inf if none is known.
        """
        self.group, self.option = np.nonzero(kept)
        shape = len(kept), len(self.group)
        self.one_each = sparse.csr_array((np.ones(shape[1]), (self.group, np.arange(shape[1]))), shape=shape)

        least = np.where(kept, groups.harms, np.inf).min(axis=1)
        harms = groups.harms[self.group, self.option] - least[self.group]
        span = max(bound - least.sum(), 1e-4 * harms.max())
        self.harm_scale = SCALE / span if span > 0 else 1.0
        self.harms = harms * self.harm_scale

        costs = np.where(kept, groups.costs, np.nan)
        cheapest = np.nanmin(costs, axis=2)
        self.rows = np.flatnonzero(np.nanmax(costs, axis=2).sum(axis=1) > groups.room)  # the others bound nothing
        spare = (groups.room - cheapest.sum(axis=1))[self.rows]
        above = (groups.costs - cheapest[..., None])[self.rows][:, self.group, self.option]
        self.cost_scale = SCALE / np.maximum(spare, above.max(axis=1, initial=0.0))
        self.costs = above * self.cost_scale[:, None]
        self.limits = spare * self.cost_scale


def _search(groups: Groups, kept: np.ndarray, bound: float, deadline: float) -> tuple[np.ndarray | None, bool]:
    """Solves the integer program over some of the options until an answer meets the limits as they are summed here.

    Args:
        groups: The problem.
        kept: Options to choose from, bool (G, N), at least one in each group.
        bound: Lower bound of the harm.
        deadline: Time, by `time.monotonic`, at which to give up.

    Returns:
        The best choice, int64 (G,), or None; and whether that is the whole truth: False if the time ran out.

    Raises:
        QuantenvError: If HiGHS failed.
    """
    program = _Program(groups, kept, bound)
    constraints = [LinearConstraint(program.one_each, 1, 1)]
    if len(program.rows):
        constraints.append(LinearConstraint(program.costs, -np.inf, program.limits))
    # HiGHS 1.12's presolve called a solution of thrice the optimum's harm optimal: where a limit was just below a sum.
    options = {"mip_rel_gap": 0.0, "presolve": False}
    while True:
        left = deadline - time.monotonic()
        with _silenced():
            found = milp(
                program.harms,
                integrality=np.ones(len(program.harms)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options=options | ({} if left == math.inf else {"time_limit": max(left, 0.0)}),
            )
        if found.x is None:
            if found.status not in (1, 2):
                raise QuantenvError(f"HiGHS could not solve the integer program: {found.message}")
            return None, found.status == 2
        taken = found.x > 0.5
        choice = program.option[taken]
        if groups.feasible(choice):
            return choice, found.status == 0
        # Over a limit by less than HiGHS can see: this one is forbidden, and nothing else.
        constraints.append(LinearConstraint(taken.astype(float)[None], -np.inf, len(choice) - 1))


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps HiGHS 1.12 from printing a line of its own to the process's output (ERGO-Code/HiGHS issue 2783)."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
        ctypes.CDLL(None).fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _infeasible(problem: Knapsack) -> InfeasibleBudgetError:
    """Says which limits cannot be met, and from where on they can."""
    groups = problem.groups
    least = np.where(np.isfinite(groups.harms), groups.costs, np.inf).min(axis=2).sum(axis=1)
    for term in groups.terms:
        levels = [term.levels[np.isfinite(groups.harms[group])].min() for group in term.layers]
        least = least + term.costs[:, max(levels)]
    alone = [
        f"{metric} <= {limit:.13g} (the least feasible is {cost:.13g})"
        for metric, limit, cost, room in zip(problem.metrics, problem.limits, least, groups.room, strict=True)
        if cost > room
    ]
    if alone:
        return InfeasibleBudgetError(f"No choice of options meets {' nor '.join(alone)}: raise the budget.")
    together = []
    bounded = [index for index, limit in enumerate(problem.limits) if limit < np.inf]
    for index in bounded if not problem.terms else ():  # of what layers cost together no harm can be made
        others = [other for other in bounded if other != index]
        cheapest = Knapsack(
            np.where(np.isfinite(problem.harms), problem.costs[index], np.inf),
            problem.costs[others],
            problem.limits[others],
            tied=problem.tied,
            pinned=problem.pinned,
        )
        with contextlib.suppress(InfeasibleBudgetError):  # the others are too tight without this one
            together.append(f"{problem.metrics[index]} {solve(cheapest).objective:.13g}")
    wanted = " and ".join(f"{problem.metrics[index]} <= {problem.limits[index]:.13g}" for index in bounded)
    hint = f" With the others as they are, the least feasible is {' or '.join(together)}." if together else ""
    return InfeasibleBudgetError(f"No choice of options meets {wanted} together.{hint} Raise a budget.")
