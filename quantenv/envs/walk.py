"""The walk of an episode: which decision is about which layers, and what each action means there."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from quantenv.core.allocation import MAX_BITS

#: What a decision settles.
Kind = Literal["weights", "activations", "both"]


@dataclass(frozen=True)
class Walk:
    """The decisions of one episode, in order, and the options each has. Made by `quantenv.envs.decisions.make_walk`.

    Decisions are about groups of tied layers; a layer that is not tied is a group of one. In the hierarchical mode a
    group is the channel groups of one layer, and its state is not (weight bits, activation bits) but (centre, spread).
    """

    mode: str
    """Name of the decision mode."""
    bits: tuple[int, ...]
    """Bit options, ascending; actions index into them."""
    members: tuple[tuple[int, ...], ...]
    """Layer indices of each group, length G, in the order of the groups' first layers."""
    group_of: np.ndarray
    """Group index of each layer, int64 (L,)."""
    groups: np.ndarray
    """Group index of each decision, int64 (T,)."""
    kinds: tuple[Kind, ...]
    """What each decision settles, length T."""
    start: np.ndarray
    """Bits before the first decision, int64 (G, 2): pinned and fixed ones, 0 where nothing is settled yet."""
    allowed: np.ndarray
    """Which (weight bits - 1, activation bits - 1) each group can have, bool (G, 8, 8): pins hold here. In the
    hierarchical mode which (centre - 1, spread - 1)."""
    options: np.ndarray
    """(weight bits, activation bits) that each action stands for, int64 (n, 2).

    Where weights and activations are not decided together, the bits stand in the first column, beside 0.
    """
    preference: np.ndarray
    """Row a lists every action from the nearest to action a to the farthest, int64 (n, n).

    Distance is counted in bits, |dw| + |da|; ties go to fewer bits in total, then to fewer weight bits.
    """
    spread: np.ndarray | None = None
    """In the hierarchical mode the weight bits of each layer by its group's state, int64 (L, 9, 9) = [layer, centre,
    spread], with 0 for what is not settled yet."""
    activations: np.ndarray | None = None
    """In the hierarchical mode the activation bits of each layer, int64 (L,)."""

    @cached_property
    def n_decisions(self) -> int:
        """Decisions in an episode, T."""
        return len(self.kinds)

    @cached_property
    def n_actions(self) -> int:
        """Actions of each decision."""
        return len(self.options)

    @property
    def mean_bits(self) -> np.ndarray:
        """Bits each action gives, the mean of both if it settles weights and activations, float64 (n,)."""
        return self.options.sum(axis=1) / (2 if self.mode == "joint" else 1)

    def per_layer(self, bits: np.ndarray) -> np.ndarray:
        """Returns the (weight bits, activation bits) of layers, (..., L, 2), for the states of groups, (..., G, 2)."""
        states = bits[..., self.group_of, :]
        if self.spread is None:
            return states
        assert self.activations is not None
        weights = self.spread[np.arange(len(self.group_of)), states[..., 0], states[..., 1]]
        return np.stack([weights, np.broadcast_to(self.activations, weights.shape)], axis=-1)

    def per_group(self, values: np.ndarray) -> np.ndarray:
        """Sums what layers have, (L, ...), over each group, (G, ...)."""
        return np.stack([values[list(layers)].sum(axis=0) for layers in self.members])

    def group_costs(self, costs: np.ndarray) -> np.ndarray:
        """Sums costs or harms of layers, float64 (L, 8, 8), over groups by their states, to (G, 8, 8)."""
        if self.spread is None:
            return self.per_group(costs)
        assert self.activations is not None
        layers = np.arange(len(costs))[:, None, None]
        by_state = costs[layers, self.spread[:, 1:, 1:] - 1, self.activations[:, None, None] - 1]
        return np.stack([by_state[list(members)].sum(axis=0) for members in self.members])

    @cached_property
    def allowed_of_layers(self) -> np.ndarray:
        """Which (weight bits - 1, activation bits - 1) each layer can end with, bool (L, 8, 8)."""
        if self.spread is None:
            return self.allowed[self.group_of]
        assert self.activations is not None
        result = np.zeros((len(self.group_of), MAX_BITS, MAX_BITS), dtype=bool)
        for layer, group in enumerate(self.group_of):
            centre, spread = np.nonzero(self.allowed[group])
            result[layer, self.spread[layer, centre + 1, spread + 1] - 1, self.activations[layer] - 1] = True
        return result

    @cached_property
    def _settling(self) -> tuple[bool, ...]:
        """Whether each decision is its group's last."""
        return (*(self.groups[1:] != self.groups[:-1]).tolist(), True)

    def settle(self, bits: np.ndarray, decision: int, action: int) -> bool:
        """Writes what an action decides into `bits`.

        Args:
            bits: Allocation so far, int64 (G, 2), changed in place.
            decision: Index of the decision.
            action: The action.

        Returns:
            Whether the decision's group now has all its bits.
        """
        group, kind = self.groups[decision], self.kinds[decision]
        if kind == "both":
            bits[group] = self.options[action]
        else:
            bits[group, 0 if kind == "weights" else 1] = self.bits[action]
        return self._settling[decision]

    def nearest(self, action: int, mask: np.ndarray) -> int:
        """Returns the nearest action that the mask, bool (n,) with at least one True, lets through."""
        order = self.preference[action]
        return int(order[mask[order].argmax()])

    def actions(self, bits: np.ndarray) -> np.ndarray:
        """Returns the actions, int64 (T,), that make a finished allocation, int64 (G, 2)."""
        index = np.zeros(MAX_BITS + 1, dtype=np.int64)
        index[list(self.bits)] = np.arange(len(self.bits))
        weight, activation = index[bits[self.groups]].T
        if self.mode == "joint":
            return weight * len(self.bits) + activation
        is_weight = np.array([kind == "weights" for kind in self.kinds])
        return np.where(is_weight, weight, activation)


def preference(options: np.ndarray) -> np.ndarray:
    """Returns `Walk.preference` of options (n, 2), int64 (n, n)."""
    distance = np.abs(options[:, None] - options[None]).sum(axis=-1)
    total = np.broadcast_to(options.sum(axis=1), distance.shape)
    weight = np.broadcast_to(options[:, 0], distance.shape)
    return np.lexsort((weight, total, distance), axis=-1)
