"""The additive proxy as a problem over arrays: a multiple-choice knapsack with any number of budgets.

Choose one option for every layer so that the summed harm is least and every summed cost stays within its limit: the
integer linear program of HAWQ-V3 (Yao et al., ICML 2021, section 3.4). It knows nothing of networks: an option is an
index into the columns of the arrays, be it a bit-width or a (weight bits, activation bits) pair.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from quantenv.core.errors import QuantenvError

#: A cost may exceed its limit by this share, for sums in different orders differ by rounding (about 1e-15 a layer).
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Together:
    """A cost of several layers that depends on the highest level among their options: a tensor that all of them read.

    Raises:
        QuantenvError: If there are less than two layers, or the costs fall with the level.
    """

    layers: tuple[int, ...]
    """Indices of the layers, or of groups of tied ones."""
    levels: np.ndarray
    """Level of each option, int64 (N,), from 0."""
    costs: np.ndarray
    """What each level adds to the costs, never falling, float64 (M, levels)."""

    def __post_init__(self) -> None:
        if len(set(self.layers)) < 2 or (np.diff(self.costs, axis=1) < 0).any():
            raise QuantenvError("What several layers cost together needs two of them, and never falls with the level.")

    def of(self, options: np.ndarray) -> np.ndarray:
        """Returns what options, int (..., L), add to the costs, float64 (M, ...)."""
        return self.costs[:, self.levels[options[..., list(self.layers)]].max(axis=-1)]


@dataclass(frozen=True, eq=False)
class Knapsack:
    """A problem over L layers with N options each and M budgets.

    Raises:
        QuantenvError: If the arrays do not fit each other or hold NaN, or a layer is left without options.
    """

    harms: np.ndarray
    """Harm of each layer's options, float64 (L, N): any finite number, or inf where a layer lacks the option."""
    costs: np.ndarray
    """Costs of each layer's options, finite wherever the option exists, float64 (M, L, N)."""
    limits: np.ndarray
    """Upper bounds of the summed costs, float64 (M,); inf bounds nothing."""
    metrics: tuple[str, ...] = ()
    """Names of the costs, for messages; by default cost 0, cost 1, ..."""
    tied: Sequence[Sequence[int]] = ()
    """Groups of layer indices that take the same option; a layer is in one at most."""
    pinned: Mapping[int, int] = field(default_factory=dict)
    """Options of layers that are not to be chosen, by layer index; of a tied layer, for its whole group."""
    terms: tuple[Together, ...] = ()
    """What several layers cost together."""

    def __post_init__(self) -> None:
        harms, costs, limits = (np.array(a, dtype=np.float64) for a in (self.harms, self.costs, self.limits))
        if harms.ndim != 2 or not harms.size or limits.ndim != 1 or costs.shape != (*limits.shape, *harms.shape):
            raise QuantenvError(
                f"A knapsack's harms, costs and limits have shapes {harms.shape}, {costs.shape} and {limits.shape}; "
                "expected (layers, options), (budgets, layers, options) and (budgets,)."
            )
        if not (harms > -np.inf).all() or not (limits > -np.inf).all():  # also refuses nan
            raise QuantenvError("A knapsack's harms and limits must be numbers, or inf for no option and no limit.")
        if not np.isfinite(costs[:, np.isfinite(harms)]).all():
            raise QuantenvError("A knapsack's costs must be finite wherever its harms are.")
        metrics = tuple(self.metrics or (f"cost {index}" for index in range(len(limits))))
        if len(metrics) != len(limits):
            raise QuantenvError(f"A knapsack of {len(limits)} budgets names {len(metrics)} metrics: name each one.")
        for name, array in (("harms", harms), ("costs", costs), ("limits", limits)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "metrics", metrics)
        for members, options in zip(self.groups.members, np.isfinite(self.groups.harms), strict=True):
            if not options.any():
                raise QuantenvError(
                    f"No option is left for layer(s) {', '.join(map(str, members))} (counted from 0): tied layers need "
                    "an option that all of them have, and are pinned alike."
                )

    @cached_property
    def groups(self) -> "Groups":
        """The same problem with one row for each group of tied layers, and with only their pinned options open."""
        layers, options = self.harms.shape
        members = [tuple(int(layer) for layer in group) for group in self.tied]
        grouped = [layer for group in members for layer in group]
        if len(set(grouped)) != len(grouped) or not set(grouped) <= set(range(layers)) or not all(members):
            raise QuantenvError(f"tied is {self.tied!r}: expected groups of layers 0 to {layers - 1}, each in one.")
        members = sorted([*members, *((layer,) for layer in range(layers) if layer not in set(grouped))])
        harms = self.harms.copy()
        for layer, option in self.pinned.items():
            if not (0 <= layer < layers and 0 <= option < options):
                raise QuantenvError(
                    f"Layer {layer} is pinned at option {option}; expected layers 0 to {layers - 1} and options 0 to "
                    f"{options - 1}."
                )
            harms[layer, np.arange(options) != option] = np.inf
        harms = np.stack([harms[list(group)].sum(axis=0) for group in members])
        costs = np.stack([self.costs[:, list(group)].sum(axis=1) for group in members], axis=1)
        group_of = {layer: index for index, group in enumerate(members) for layer in group}
        terms = []
        for term in self.terms:
            units = tuple(sorted({group_of[layer] for layer in term.layers}))
            if len(units) > 1:
                terms.append(Together(units, term.levels, term.costs))
            else:
                costs[:, units[0]] += term.costs[:, term.levels]
        return Groups(tuple(members), harms, np.where(np.isfinite(harms), costs, 0.0), self.limits, tuple(terms))

    def solution(self, choice: np.ndarray, bound: float = math.inf) -> "Solution":
        """Returns the solution in which each group takes an option.

        Args:
            choice: The options, int (G,); what follows them is of no layer (see `Groups.plain`).
            bound: Proven lower bound of the optimum; inf says that this is the optimum.
        """
        options = np.zeros(len(self.harms), dtype=np.int64)
        for members, option in zip(self.groups.members, choice[: len(self.groups.members)], strict=True):
            options[list(members)] = option
        layers = np.arange(len(options))
        objective = math.fsum(self.harms[layers, options])
        together = [term.of(options) for term in self.terms]
        costs = np.array(
            [math.fsum([*cost[layers, options], *(t[row] for t in together)]) for row, cost in enumerate(self.costs)]
        )
        return Solution(options, objective, costs, min(bound, objective))


@dataclass(frozen=True, eq=False)
class Groups:
    """A knapsack without ties and pins, over G groups of layers."""

    members: tuple[tuple[int, ...], ...]
    """Layer indices of each group, length G, in the order of their first layers."""
    harms: np.ndarray
    """Float64 (G, N); inf where there is no option."""
    costs: np.ndarray
    """Float64 (M, G, N); 0 where there is no option."""
    limits: np.ndarray
    """Float64 (M,)."""
    terms: tuple[Together, ...] = ()
    """What several groups cost together."""

    @cached_property
    def plain(self) -> "Groups":
        """The same problem without terms; its solutions are one to one with this one's.

        For every level that a term can reach above its least, there is one more group with two options, 0: not reached,
        and 1: reached, which costs the difference. Two more rows make it 1 if and only if some group's option is of
        that level or a higher one: a group's options of these levels cost 1 in the first, where 0 costs 1 too, and -1
        in the second, where 1 costs 1; their limits are 1 for each group, and 0.
        """
        if not self.terms:
            return self
        steps: list[tuple[Together, int, np.ndarray]] = []
        base = np.zeros(len(self.limits))
        for term in self.terms:
            reached = [term.levels[np.isfinite(self.harms[group])] for group in term.layers]
            least = max(int(levels.min()) for levels in reached)
            base += term.costs[:, least]
            below = least
            for level in sorted({int(each) for levels in reached for each in levels if each > least}):
                steps.append((term, level, term.costs[:, level] - term.costs[:, below]))
                below = level
        count, options = self.harms.shape
        options = max(options, 2)
        harms = np.full((count + len(steps), options), np.inf)
        harms[:count, : self.harms.shape[1]] = self.harms
        harms[count:, :2] = 0.0
        costs = np.zeros((len(self.limits), *harms.shape))
        costs[:, :count, : self.harms.shape[1]] = self.costs
        costs[:, 0] += np.where(np.isfinite(harms[0]), base[:, None], 0.0)
        links, limits = [], []
        for index, (term, level, difference) in enumerate(steps, count):
            costs[:, index, 1] = difference
            high = np.zeros(options)
            high[: len(term.levels)] = term.levels >= level
            if_some = np.zeros(harms.shape)
            if_some[index, 1] = 1.0
            for group in term.layers:
                row = np.zeros(harms.shape)
                row[group], row[index, 0] = high, 1.0
                links.append(row)
                if_some[group] = -high
            links.append(if_some)
            limits += [1.0] * len(term.layers) + [0.0]
        if links:
            links_ = np.where(np.isfinite(harms), np.stack(links), 0.0)
            costs = np.concatenate([costs, links_])
        members = (*self.members, *((),) * len(steps))
        return Groups(members, harms, costs, np.concatenate([self.limits, limits]))

    def plain_choice(self, choice: np.ndarray) -> np.ndarray:
        """Returns the choice of `plain`, int64, for one of this problem, int (G,)."""
        reached = []
        for term in self.terms:
            levels = [term.levels[np.isfinite(self.harms[group])] for group in term.layers]
            least, top = max(int(each.min()) for each in levels), term.levels[choice[list(term.layers)]].max()
            reached += [top >= level for level in sorted({int(x) for each in levels for x in each if x > least})]
        return np.concatenate([choice, np.array(reached, dtype=np.int64)])

    @cached_property
    def room(self) -> np.ndarray:
        """The limits and the rounding that is allowed, float64 (M,)."""
        return np.where(np.isfinite(self.limits), self.limits + ROUNDING * np.abs(self.limits), np.inf)

    @cached_property
    def fitting(self) -> np.ndarray:
        """Options that meet each limit beside the cheapest of the others, bool (G, N).

        A group left without one proves that no solution meets the limits; the converse holds for one budget only.
        """
        fitting = np.isfinite(self.harms)
        while fitting.any(axis=1).all():
            costs = np.where(fitting, self.costs, np.inf)
            least = costs.min(axis=2)
            spare = self.room - least.sum(axis=1)
            fits = fitting & (costs - least[..., None] <= spare[:, None, None]).all(axis=0)
            if (fits == fitting).all():
                break
            fitting = fits
        return fitting

    def harm(self, choice: np.ndarray) -> np.ndarray:
        """Returns the harms of choices, int (..., G), as float64 (...)."""
        return self.harms[np.arange(len(self.harms)), choice].sum(axis=-1)

    def feasible(self, choice: np.ndarray) -> np.ndarray:
        """Returns whether choices, int (..., G), exist and meet every limit, bool (...)."""
        costs = self.costs[:, np.arange(len(self.harms)), choice].sum(axis=-1)
        for term in self.terms:
            costs = costs + term.of(choice)
        room = self.room.reshape(-1, *(1,) * (costs.ndim - 1))
        return np.isfinite(self.harm(choice)) & (costs <= room).all(axis=0)


@dataclass(frozen=True, eq=False)
class Solution:
    """An option for every layer."""

    options: np.ndarray
    """Index of each layer's option, int64 (L,)."""
    objective: float
    """Summed harm."""
    costs: np.ndarray
    """Summed costs, float64 (M,)."""
    bound: float
    """No solution has less harm than this: the objective itself, unless a limit on the work ended the proof."""

    @property
    def proven(self) -> bool:
        """Whether this is known to be best (among the next best: whether its place is known)."""
        return self.bound >= self.objective
