"""The walk of an episode: which decision is about which layers, and what each action means there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from quantenv.allocation import MAX_BITS, MIN_BITS
from quantenv.errors import QuantenvError, unknown_name
from quantenv.groups import Tied, resolve_groups
from quantenv.hardware.devices import Device
from quantenv.layers import LayerSpec

#: What one decision settles, in the order of an episode, for each decision mode.
DECISIONS: dict[str, tuple["Kind", ...]] = {
    "weights": ("weights",),
    "weights+activations": ("weights", "activations"),
    "joint": ("both",),
}
Kind = Literal["weights", "activations", "both"]
Pins = Mapping[str, int | tuple[int, int]] | Literal["first_last"] | None


def check_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Returns the bit options in ascending order.

    Args:
        bits: The bit-widths on offer, whole numbers from 1 to 8, without repetition, in any order.

    Raises:
        QuantenvError: If there are none, one is repeated, or one is not a whole number from 1 to 8.
    """
    for bit in bits:
        check_bit(bit, "bits")
    if not bits or len(set(bits)) != len(bits):
        raise QuantenvError(
            f"bits is {tuple(bits)!r}: give at least one bit-width, each of them once, for example (2, 4, 8)."
        )
    return tuple(sorted(int(bit) for bit in bits))


def check_bit(bit: object, what: str) -> int:
    """Returns one bit-width as an int, or raises QuantenvError unless it is a whole number from 1 to 8."""
    whole = isinstance(bit, int | np.integer) and not isinstance(bit, bool)
    if not whole or not MIN_BITS <= int(bit) <= MAX_BITS:  # type: ignore[call-overload]
        raise QuantenvError(f"{what} holds {bit!r}: expected whole numbers from {MIN_BITS} to {MAX_BITS}.")
    return int(bit)  # type: ignore[call-overload]


def resolve_pins(pinned: Pins, layers: Sequence[LayerSpec], device: Device) -> dict[int, tuple[int, int]]:
    """Turns the `pinned` argument into (weight bits, activation bits) by layer index.

    Args:
        pinned: None; ``"first_last"`` for 8/8 in the first and last layer; or a mapping from layer names to
            bits, where one number pins weights and activations alike and a pair pins each.
        layers: The network's layers.
        device: The device; it must support the pinned bits.

    Raises:
        QuantenvError: If a layer is unknown, or bits are not 1-8 or not supported by the device.
    """
    names = [layer.name for layer in layers]
    if pinned is None:
        wanted: dict[str, int | tuple[int, int]] = {}
    elif pinned == "first_last":
        wanted = {names[0]: MAX_BITS, names[-1]: MAX_BITS}
    elif isinstance(pinned, Mapping):
        wanted = dict(pinned)
    else:
        raise QuantenvError(
            f"pinned is {pinned!r}: expected None, 'first_last' or a mapping such as {{{names[0]!r}: 8}}."
        )
    pins = {}
    for name, bits in wanted.items():
        if name not in names:
            raise unknown_name("pinned layer", name, names)
        pair = bits if isinstance(bits, tuple | list) else (bits, bits)
        if len(pair) != 2:
            raise QuantenvError(f"pinned[{name!r}] is {bits!r}: expected one bit-width or (weights, activations).")
        weight, activation = (check_bit(bit, f"pinned[{name!r}]") for bit in pair)
        if not device.supports[weight - 1, activation - 1]:
            raise QuantenvError(
                f"Layer {name!r} is pinned at {weight}/{activation} weight/activation bits, which device "
                f"{device.name!r} does not support. {_supported(device)}"
            )
        pins[names.index(name)] = (weight, activation)
    return pins


@dataclass(frozen=True)
class Walk:
    """The decisions of one episode, in order, and the options each has. Made by `make_walk`.

    Decisions are about groups of tied layers; a layer that is not tied is a group of one.
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
    """Which (weight bits - 1, activation bits - 1) each group can have, bool (G, 8, 8): pins hold here."""
    options: np.ndarray
    """(weight bits, activation bits) that each action stands for, int64 (n, 2).

    Where weights and activations are not decided together, the bits stand in the first column, beside 0.
    """
    preference: np.ndarray
    """Row a lists every action from the nearest to action a to the farthest, int64 (n, n).

    Distance is counted in bits, |dw| + |da|; ties go to fewer bits in total, then to fewer weight bits.
    """

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

    def per_layer(self, values: np.ndarray) -> np.ndarray:
        """Repeats what groups have, (..., G, k), for each of their layers, (..., L, k)."""
        return values[..., self.group_of, :]

    def per_group(self, values: np.ndarray) -> np.ndarray:
        """Sums what layers have, (L, ...), over each group, (G, ...)."""
        return np.stack([values[list(layers)].sum(axis=0) for layers in self.members])

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
        return kind != "weights" or self.mode == "weights"

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


def make_walk(
    mode: str,
    bits: Sequence[int],
    activation_bits: int,
    pinned: Pins,
    layers: Sequence[LayerSpec],
    device: Device,
    tied: Tied = None,
) -> Walk:
    """Lays out the decisions of an episode: group by group in execution order, pinned ones left out.

    Args:
        mode: A name of `DECISIONS`.
        bits: Bit options, 1-8.
        activation_bits: Bits of all activations that are not pinned, where weights alone are decided.
        pinned: See `resolve_pins`.
        layers: The network's layers.
        device: Says which bit-widths exist.
        tied: Groups of layer names that have the same bits; see `resolve_groups`.

    Returns:
        The walk.

    Raises:
        QuantenvError: If a name or bit-width is unknown, if every layer is pinned, if the layers of a group are
            not pinned alike, or if the device supports none of the options.
    """
    if mode not in DECISIONS:
        raise unknown_name("decisions", mode, DECISIONS)
    choices = check_bits(bits)
    fixed = check_bit(activation_bits, "activation_bits")
    if mode != "weights" and fixed != MAX_BITS:
        raise QuantenvError(
            f"activation_bits={fixed} fixes what decisions={mode!r} decides: use decisions='weights', or leave it out."
        )
    members = resolve_groups(tied, layers)
    pins = _pins_of_groups(resolve_pins(pinned, layers, device), members, layers)
    free = [group for group in range(len(members)) if group not in pins]
    if not free:
        raise QuantenvError("Every layer is pinned, so there is nothing to decide: pin fewer layers.")

    offered = np.zeros((MAX_BITS, MAX_BITS), dtype=bool)
    columns = (fixed,) if mode == "weights" else choices
    offered[np.ix_(np.array(choices) - 1, np.array(columns) - 1)] = True
    usable = offered & device.supports
    if not usable.any():
        what = f"activation_bits={fixed} with weight " if mode == "weights" else ""
        raise QuantenvError(f"Device {device.name!r} does not support {what}bits={choices}. {_supported(device)}")

    allowed = np.zeros((len(members), MAX_BITS, MAX_BITS), dtype=bool)
    allowed[free] = usable
    start = np.zeros((len(members), 2), dtype=np.int64)
    if mode == "weights":
        start[free, 1] = fixed
    for group, pair in pins.items():
        start[group] = pair
        allowed[group, pair[0] - 1, pair[1] - 1] = True

    group_of = np.zeros(len(layers), dtype=np.int64)
    for group, indices in enumerate(members):
        group_of[list(indices)] = group
    per_group = DECISIONS[mode]
    if mode == "joint":
        options = np.array([(weight, activation) for weight in choices for activation in choices])
    else:
        options = np.array([(bit, 0) for bit in choices])
    return Walk(
        mode=mode,
        bits=choices,
        members=members,
        group_of=group_of,
        groups=np.repeat(np.array(free, dtype=np.int64), len(per_group)),
        kinds=per_group * len(free),
        start=start,
        allowed=allowed,
        options=options,
        preference=_preference(options),
    )


def _pins_of_groups(
    pins: Mapping[int, tuple[int, int]], members: Sequence[Sequence[int]], layers: Sequence[LayerSpec]
) -> dict[int, tuple[int, int]]:
    """Turns the pins of layers into pins of groups, all of whose layers must be pinned alike or not at all."""
    of_groups = {}
    for group, indices in enumerate(members):
        found = {pins.get(index) for index in indices}
        if len(found) > 1:
            names = ", ".join(layers[index].name for index in indices)
            raise QuantenvError(
                f"The tied layers {names} are pinned at different bits, or not all of them: pin the whole group alike, "
                "or untie it."
            )
        pin = found.pop()
        if pin is not None:
            of_groups[group] = pin
    return of_groups


def _preference(options: np.ndarray) -> np.ndarray:
    distance = np.abs(options[:, None] - options[None]).sum(axis=-1)
    total = np.broadcast_to(options.sum(axis=1), distance.shape)
    weight = np.broadcast_to(options[:, 0], distance.shape)
    return np.lexsort((weight, total, distance), axis=-1)


def _supported(device: Device) -> str:
    weights, activations = (", ".join(map(str, bits)) for bits in (device.weight_bits, device.activation_bits))
    return f"It supports weight bits {weights} and activation bits {activations}."
