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

from quantenv.errors import QuantenvError

#: A cost may exceed its limit by this share, for sums in different orders differ by rounding (about 1e-15 a layer).
ROUNDING = 1e-12


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
        return Groups(tuple(members), harms, np.where(np.isfinite(harms), costs, 0.0), self.limits)

    def solution(self, choice: np.ndarray, bound: float = math.inf) -> "Solution":
        """Returns the solution in which each group takes an option.

        Args:
            choice: The options, int (G,).
            bound: Proven lower bound of the optimum; inf says that this is the optimum.
        """
        options = np.zeros(len(self.harms), dtype=np.int64)
        for members, option in zip(self.groups.members, choice, strict=True):
            options[list(members)] = option
        layers = np.arange(len(options))
        objective = math.fsum(self.harms[layers, options])
        costs = np.array([math.fsum(cost[layers, options]) for cost in self.costs])
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
