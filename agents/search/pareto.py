"""The additive proxy's Pareto curve: the least harm at every budget of one cost.

All of it is found at once by Nemhauser and Ullmann's dynamic programming (Management Science 15, 1969): groups are
added one by one, and of the partial solutions only those stay that no other beats in both harm and cost. Where several
groups cost something together, partial solutions are compared only if they have reached the same levels of it.
"""

import numpy as np

from agents.search.ilp import solve
from agents.search.knapsack import Knapsack, Solution
from quantenv.core.errors import QuantenvError

#: Most partial solutions that `front` keeps beside each other: with their ancestors, about 1 GB for 50 groups.
LARGEST = 1_000_000

#: Sums that differ by this share of the largest are the same but for rounding.
SAME = 1e-13


def front(problem: Knapsack) -> tuple[Solution, ...]:
    """Finds every solution that no other beats in both harm and cost.

    Args:
        problem: A problem with one budget, at whose limit the front ends; inf gives all of it.

    Returns:
        Solutions by ascending cost and falling harm, one for each cost. Sums that are the same but for rounding count
        as equal.

    Raises:
        InfeasibleBudgetError: If no solution meets the limit.
        QuantenvError: If there is not one budget, or the front grows beyond `LARGEST`.
    """
    if len(problem.limits) != 1:
        raise QuantenvError(
            f"A front is about one cost that is a sum, not {len(problem.limits)}: leave the others out, or solve at "
            "some budgets instead, as for a maximum."
        )
    solve(problem)  # says clearly if there is no solution
    groups = problem.groups
    fitting, room = groups.fitting, groups.room[0]
    rest = np.where(fitting, groups.costs[0], np.inf).min(axis=1)[::-1].cumsum()[::-1]
    rest = np.append(rest, 0.0)  # the least that the groups from each one on cost
    same_harm, same_cost = (
        SAME * float(np.where(fitting, np.abs(array), 0.0).max(axis=1).sum())
        for array in (groups.harms, groups.costs[0])
    )
    harms, costs = np.zeros(1), np.zeros(1)
    least = [max(int(t.levels[fitting[group]].min()) for group in t.layers) for t in groups.terms]
    costs += sum(term.costs[0, level] for term, level in zip(groups.terms, least, strict=True))
    reached = np.array([least], dtype=np.int64)  # levels of the terms, of each partial solution
    steps = []
    for group, fits in enumerate(fitting):
        options = np.flatnonzero(fits)
        more_harms = (harms[:, None] + groups.harms[group, options]).ravel()
        more_costs = (costs[:, None] + groups.costs[0, group, options]).ravel()
        reached = np.repeat(reached, len(options), axis=0)
        for index, term in enumerate(groups.terms):
            if group in term.layers:
                higher = np.maximum(reached[:, index], np.tile(term.levels[options], len(harms)))
                more_costs += term.costs[0, higher] - term.costs[0, reached[:, index]]
                reached[:, index] = 0 if group == max(term.layers) else higher  # nobody asks any more
        rows = np.flatnonzero(more_costs + rest[group + 1] <= room)
        _, key = np.unique(reached[rows], axis=0, return_inverse=True)
        alike = [rows[key.ravel() == each] for each in range(key.max(initial=-1) + 1)]
        kept = [each[_undominated(more_harms[each], more_costs[each], same_harm, same_cost)] for each in alike]
        rows = np.concatenate(kept)
        reached = reached[rows]
        if len(rows) > LARGEST:
            raise QuantenvError(
                f"The Pareto front has more than {LARGEST:,} partial solutions: solve at some budgets instead."
            )
        harms, costs = more_harms[rows], more_costs[rows]
        parents, taken = np.divmod(rows, len(options))
        steps.append((parents, options[taken]))
    choices = np.empty((len(harms), len(steps)), dtype=np.int64)
    rows = np.arange(len(harms))
    for group, (parents, taken) in reversed(list(enumerate(steps))):
        choices[:, group] = taken[rows]
        rows = parents[rows]
    return tuple(problem.solution(choice) for choice in choices)


def _undominated(harms: np.ndarray, costs: np.ndarray, same_harm: float, same_cost: float) -> np.ndarray:
    """Returns the rows that no other beats in both, int64 (k,), by ascending cost; one of several equal ones."""
    order = np.argsort(costs, kind="stable")
    level = np.zeros(len(costs), dtype=np.int64)  # of cost: equal ones are on the same
    level[order[1:]] = np.cumsum(np.diff(costs[order]) > same_cost)
    order = np.lexsort((harms, level))
    best = np.minimum.accumulate(harms[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = harms[order[1:]] < best[:-1] - same_harm
    return order[better]
