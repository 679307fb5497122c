"""The N best solutions of the additive proxy, in order: branch and bound over arrays of partial solutions.

Groups are decided one after the other, most decisive first, for thousands of partial solutions at once. A partial
solution is dropped if no completion meets the limits, or if its Lagrangian bound exceeds the N-th best solution known.
Those with the least bounds go first (a beam stack, Zhou and Hansen, ICAPS 2005), so that N good solutions are known
early; whatever was put aside is taken up again, and nothing is lost.
"""

from dataclasses import dataclass

import numpy as np

from agents.search.ilp import lagrangian, multipliers, solve
from agents.search.knapsack import Groups, Knapsack, Solution

#: Partial solutions that are extended at once, and before the first N solutions are known.
BEAM, DIVE = 4096, 128

#: Partial solutions after which the search is given up: some seconds.
WORK = 5_000_000

#: Multipliers besides the relaxation's own, as its multiples: they bound better where more or less is left to spend.
FACTORS = (0.0, 0.5, 0.8, 1.0, 1.25, 2.0)


def next_best(problem: Knapsack, count: int, work: int = WORK) -> tuple[Solution, ...]:
    """Finds the solutions of least harm.

    Args:
        problem: The problem.
        count: How many to find, at least 1.
        work: Partial solutions to look at before the search is given up.

    Returns:
        Up to `count` different solutions, all there are if fewer, by harm, then by their options. Which solutions of
        equal harm come last may be arbitrary. A solution is `proven` if no better one can be missing before it; if the
        search was given up the first is still the optimum, and others, not proven, are the best that were met.

    Raises:
        InfeasibleBudgetError: If no solution meets the limits.
    """
    best = solve(problem)
    groups = problem.groups
    search = _Search(groups.plain, count, work)
    search.add(groups.plain_choice(best.options[[members[0] for members in groups.members]])[None])
    bound = max(search.run(), best.bound)
    found = [problem.solution(choice, bound) for choice in search.choices]
    return tuple(sorted(found, key=lambda solution: (solution.objective, solution.options.tolist())))


@dataclass(frozen=True, eq=False)
class _Partial:
    """Partial solutions of the first `depth` groups in the search's order."""

    depth: int
    harms: np.ndarray
    """Float64 (n,)."""
    costs: np.ndarray
    """Float64 (n, M)."""
    choices: np.ndarray
    """Options of the groups so far, int32 (n, G); 0 for the others."""
    bounds: np.ndarray
    """Lower bounds of their completions' harm, ascending, float64 (n,)."""

    def take(self, rows: np.ndarray | slice) -> "_Partial":
        """Returns some of them."""
        return _Partial(self.depth, self.harms[rows], self.costs[rows], self.choices[rows], self.bounds[rows])


class _Search:
    """A search for the `count` best; they are in `choices`, int64 (k, G), in no order."""

    def __init__(self, groups: Groups, count: int, work: int) -> None:
        self._groups, self._count, self._work = groups, count, work
        self.choices = np.empty((0, len(groups.harms)), dtype=np.int64)
        self._harms = np.empty(0)
        duals = multipliers(groups)
        assert duals is not None  # the problem has a solution
        priced = np.flatnonzero(np.isfinite(groups.limits))
        self._duals = np.outer(FACTORS, duals)[:, priced]
        self._bound, raised = lagrangian(groups, duals)
        spread = np.where(groups.fitting, raised, 0.0).max(axis=1)
        self._order = np.argsort(-spread, kind="stable")
        self._harm = groups.harms[self._order]
        self._cost = np.moveaxis(groups.costs[priced][:, self._order], 0, -1)  # (G, N, M)
        self._room = groups.room[priced]
        self._fitting, self._raised = groups.fitting[self._order], raised[self._order]
        # What the groups from a depth on add at least: to each cost, and to the harm at each multiplier.
        least = np.where(self._fitting[..., None], self._cost, np.inf).min(axis=1)
        self._least = _from_depth_on(least)
        values = self._harm + np.tensordot(self._duals, self._cost, axes=(1, 2))  # (K, G, N)
        self._value = _from_depth_on(np.where(self._fitting, values, np.inf).min(axis=2).T) - self._duals @ self._room
        # Equal solutions are equal up to rounding only: what is no better than the N-th best by more is not looked at.
        self._rounding = 1e-12 * float(np.abs(self._harm[self._fitting]).max()) * len(self._harm)

    @property
    def _worst(self) -> float:
        return float(self._harms.max()) if len(self._harms) == self._count else np.inf

    def run(self) -> float:
        """Searches; returns the harm below which no solution is missing."""
        groups, budgets = len(self._harm), len(self._room)
        root = _Partial(
            0, np.zeros(1), np.zeros((1, budgets)), np.zeros((1, groups), dtype=np.int32), np.full(1, -np.inf)
        )
        stack, looked_at = [root], 0
        while stack:
            if looked_at > self._work:
                return min(float(partial.bounds[0]) for partial in stack)
            partial = stack.pop()
            partial = partial.take(slice(int(np.searchsorted(partial.bounds, self._worst - self._rounding))))
            if not len(partial.harms):
                continue
            width = BEAM if self._worst < np.inf else DIVE
            if len(partial.harms) > width:
                stack.append(partial.take(slice(width, None)))
            extended = self._extend(partial.take(slice(width)))
            looked_at += len(extended.harms)
            if not len(extended.harms):
                continue
            if extended.depth < groups:
                stack.append(extended)
            else:
                choices = np.empty(extended.choices.shape, dtype=np.int64)
                choices[:, self._order] = extended.choices
                self.add(choices)
        return np.inf

    def add(self, choices: np.ndarray) -> None:
        """Keeps the best of what is known and these choices, int (n, G)."""
        choices = choices[self._groups.feasible(choices)]
        choices = np.unique(np.concatenate([self.choices, choices]), axis=0)
        harms = self._groups.harm(choices)
        best = np.argsort(harms, kind="stable")[: self._count]
        self.choices, self._harms = choices[best], harms[best]

    def _extend(self, partial: _Partial) -> _Partial:
        """Adds every option of the next group, and drops what leads nowhere."""
        depth = partial.depth
        options = np.flatnonzero(self._raised[depth] <= self._worst - self._bound)
        options = options[self._fitting[depth, options]]
        harms = (partial.harms[:, None] + self._harm[depth, options]).ravel()
        costs = (partial.costs[:, None] + self._cost[depth, options]).reshape(len(harms), len(self._room))
        bounds = (harms[:, None] + costs @ self._duals.T + self._value[depth + 1]).max(axis=1)
        open_ = (costs + self._least[depth + 1] <= self._room).all(axis=1) & (bounds < self._worst - self._rounding)
        rows = np.flatnonzero(open_)
        rows = rows[np.argsort(bounds[rows], kind="stable")]
        choices = partial.choices[rows // len(options)]
        choices[:, depth] = options[rows % len(options)]
        return _Partial(depth + 1, harms[rows], costs[rows], choices, bounds[rows])


def _from_depth_on(values: np.ndarray) -> np.ndarray:
    """Sums values (G, K) from each depth on, to (G + 1, K)."""
    return np.concatenate([np.cumsum(values[::-1], axis=0)[::-1], np.zeros((1, values.shape[1]))])
