"""An environment's decisions as a multiple-choice knapsack: one pair of bits for every group of layers.

Costs and additive harms belong to a group's *pair* of weight and activation bits, whether one decision settles it or
two: bit operations multiply the two, and a device may support some pairs only. Searches that trade harm against cost
therefore pick pairs. In `weights` mode a pair is a decision's option.
"""

import numpy as np

from agents.search.knapsack import Knapsack, Together
from agents.search.problem import Problem
from quantenv.envs.masks import cheapest_bits
from quantenv.hardware.budget import TOLERANCE


class Choices:
    """What can be picked, and what it takes of the budgets.

    F groups are decided; a pick is the index of a pair for each of them, int64 (F,); picks come in batches, (k, F).

    Attributes:
        pairs: (weight bits, activation bits) that some group can have, int64 (P, 2): by their sum, then weight bits.
        open: Which pairs each group can have, bool (F, P).
        prices: Share of each limit that a group's pair takes, float64 (F, P, M).
        pinned: Share of each limit that pinned groups take, float64 (M,).
        terms: What tensors that several groups read take: these groups, and shares of the limits by the most activation
            bits that one of them has - 1, float64 (8, M).
    """

    def __init__(self, problem: Problem) -> None:
        """Lays out the pairs.

        Args:
            problem: The decisions, costs and budgets.
        """
        walk = problem.walk
        self._problem = problem
        self._groups = np.unique(walk.groups)  # ascending, as the decisions are
        pairs = np.argwhere(walk.allowed[self._groups].any(axis=0)) + 1
        self.pairs = pairs[np.lexsort((pairs[:, 0], pairs.sum(axis=1)))]
        weight, activation = self.pairs.T - 1
        self.open = walk.allowed[self._groups][:, weight, activation]
        values = problem.costs.values
        self.prices = np.moveaxis(values[:, self._groups][:, :, weight, activation], 0, -1) / problem.limits
        held = np.setdiff1d(np.arange(len(walk.members)), self._groups)
        weight, activation = walk.start[held].T - 1
        self.pinned = values[:, held, weight, activation].sum(axis=1) / problem.limits
        self.terms = tuple(
            (np.searchsorted(self._groups, term.units), term.values.T / problem.limits)
            for term in problem.costs.terms
            if term.values.any()
        )

    def loads(self, picks: np.ndarray) -> np.ndarray:
        """Returns the share of each limit that picks (k, F) take, float64 (k, M): above 1 is too much."""
        loads: np.ndarray = self.pinned + self.prices[np.arange(picks.shape[1]), picks].sum(axis=1)
        for groups, shares in self.terms:
            loads = loads + shares[self.pairs[picks[:, groups], 1].max(axis=1) - 1]
        return loads

    def feasible(self, picks: np.ndarray) -> np.ndarray:
        """Returns whether picks (k, F) are open and meet every budget, bool (k,)."""
        legal = self.open[np.arange(picks.shape[1]), picks].all(axis=1)
        return np.asarray(legal & (self.loads(picks) <= 1 + TOLERANCE).all(axis=1))

    def steps(self, pick: np.ndarray) -> np.ndarray:
        """Returns the neighbours of a pick (F,), and what gives all groups that read a tensor the same activations.

        Such a tensor is smaller only if all of them want fewer bits. Weights stay; open pairs only, int64 (K, F).
        """
        together = []
        for groups, _ in self.terms:
            for bits in np.unique(self.pairs[:, 1]):
                moved = pick.copy()
                for group in groups:
                    same = (self.pairs == (self.pairs[pick[group], 0], bits)).all(axis=1) & self.open[group]
                    if not same.any():
                        break
                    moved[group] = same.argmax()
                else:
                    together.append(moved)
        found = np.array(together, dtype=np.int64).reshape(-1, len(pick))
        return np.concatenate([self.neighbours(pick), found[(found != pick).any(axis=1)]])

    def neighbours(self, pick: np.ndarray) -> np.ndarray:
        """Returns all that differ from a pick (F,) in one group, open pairs only, int64 (K, F)."""
        group, pair = np.nonzero(self.open & (np.arange(len(self.pairs)) != pick[:, None]))
        moved = np.tile(pick, (len(group), 1))
        moved[np.arange(len(group)), group] = pair
        return moved

    def cheapest(self) -> np.ndarray:
        """Returns the pick that costs least, int64 (F,), which meets the budgets if anything does."""
        problem = self._problem
        return self._of_bits(cheapest_bits(problem.walk.allowed, problem.costs.values, problem.limits)[None])[0]

    def highest(self) -> np.ndarray:
        """Returns the pick of each group's most bits, int64 (F,): open, not necessarily feasible."""
        return self.open.shape[1] - 1 - self.open[:, ::-1].argmax(axis=1)

    def actions(self, picks: np.ndarray) -> np.ndarray:
        """Returns the actions, int64 (k, T), that make picks (k, F)."""
        walk = self._problem.walk
        bits = np.tile(walk.start, (len(picks), 1, 1))
        bits[:, self._groups] = self.pairs[picks]
        return np.array([walk.actions(each) for each in bits], dtype=np.int64).reshape(-1, walk.n_decisions)

    def picks(self, actions: np.ndarray) -> np.ndarray:
        """Returns the picks, int64 (k, F), that actions (k, T) make, as an environment reports them executed."""
        return self._of_bits(self._problem.bits(actions))

    def harms(self, harms: np.ndarray) -> np.ndarray:
        """Returns the harm of each group's pairs, float64 (F, P), inf where one is not open, of harms (G, 8, 8)."""
        weight, activation = self.pairs.T - 1
        return np.where(self.open, harms[self._groups][:, weight, activation], np.inf)

    def swaps(self, picks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draws a feasible change of two groups for each of some picks, int64 (k, F).

        One random group takes any open pair, and a second one any with which the budgets are met, its present one
        included: most good picks use a budget up, so that what helps is a swap. A pick stays where nothing fits.

        Args:
            picks: Feasible picks, int64 (k, F).
            generator: Draws.

        Returns:
            Feasible picks, int64 (k, F).
        """
        (count, groups), pairs = picks.shape, len(self.pairs)
        each = np.arange(count)
        first, shift = generator.integers(groups, size=count), generator.integers(1, max(groups, 2), size=count)
        second = (first + shift) % groups
        priority = generator.random((2, count, pairs))  # the one of highest priority is taken
        moved = picks.copy()
        moved[each, first] = np.where(self.open[first], priority[0], -1.0).argmax(axis=1)
        tried = np.repeat(moved[:, None], pairs, axis=1)  # (k, P, F)
        tried[each, :, second] = np.arange(pairs)
        fits = self.feasible(tried.reshape(-1, groups)).reshape(count, pairs)
        drawn = tried[each, np.where(fits, priority[1], -1.0).argmax(axis=1)]
        return np.where(fits.any(axis=1, keepdims=True), drawn, picks)

    def knapsack(self, harms: np.ndarray) -> Knapsack:
        """Returns the additive problem whose options are the pairs, for harms float64 (F, P)."""
        limits = 1 + TOLERANCE - self.pinned
        levels = self.pairs[:, 1] - 1
        terms = tuple(Together(tuple(groups.tolist()), levels, shares.T) for groups, shares in self.terms)
        return Knapsack(harms, np.where(self.open, np.moveaxis(self.prices, -1, 0), 0.0), limits, terms=terms)

    def _of_bits(self, bits: np.ndarray) -> np.ndarray:
        """Finds the picks (k, F) in the bits of all groups, int64 (k, G, 2)."""
        index = np.zeros((9, 9), dtype=np.int64)
        index[self.pairs[:, 0], self.pairs[:, 1]] = np.arange(len(self.pairs))
        decided = bits[:, self._groups]
        return index[decided[..., 0], decided[..., 1]]


def harm_of(harms: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Sums harms, float64 (F, P), over picks (k, F), to (k,)."""
    return harms[np.arange(picks.shape[1]), picks].sum(axis=1)
