"""The decisions of an episode, laid out: modes, pins, tied layers, channel groups and what a device supports."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from quantenv.core.allocation import MAX_BITS, MIN_BITS
from quantenv.core.arguments import listed, one_of, plain
from quantenv.core.channel_groups import indices_of, parts_of, whole
from quantenv.core.errors import QuantenvError, shown, unknown_name
from quantenv.core.layers import LayerSpec
from quantenv.core.ties import Tied, resolve_groups
from quantenv.envs.spreads import spread_bits, spreads_of
from quantenv.envs.walk import Kind, Walk, preference
from quantenv.hardware.devices import Device

#: What one decision settles, in the order of an episode, for each decision mode.
DECISIONS: dict[str, tuple[Kind, ...]] = {
    "weights": ("weights",),
    "weights+activations": ("weights", "activations"),
    "joint": ("both",),
    # The second decision is how the bits are spread over the layer's channel groups. It stands where activations stand
    # in other modes: in the second column of a group's state, named by a bit option (see `quantenv.envs.spreads`).
    "hierarchical": ("weights", "activations"),
}
#: Modes in which activation bits are not decided.
FIXED_ACTIVATIONS = ("weights", "hierarchical")
Pins = Mapping[str, int | tuple[int, int]] | Literal["first_last"] | None


def check_bits(bits: Any) -> tuple[int, ...]:
    """Returns the bit options in ascending order.

    Args:
        bits: The bit-widths on offer, whole numbers from 1 to 8, without repetition, in any order: a list, a tuple, a
            range, or an array of one dimension.

    Raises:
        QuantenvError: If there are none, one is repeated, or one is not a whole number from 1 to 8.
    """
    options = [check_bit(bit, "bits") for bit in listed(bits, "bits", "bit-widths, for example (2, 4, 8)")]
    if not options or len(set(options)) != len(options):
        raise QuantenvError(
            f"bits is {shown(bits)}: give at least one bit-width, each of them once, for example (2, 4, 8)."
        )
    return tuple(sorted(options))


def check_bit(bit: object, what: str) -> int:
    """Returns one bit-width as an int, or raises QuantenvError unless it is a whole number from 1 to 8."""
    width = plain(bit)
    whole = isinstance(width, int) and not isinstance(width, bool)
    if not whole or not MIN_BITS <= width <= MAX_BITS:
        raise QuantenvError(f"{what} holds {shown(bit)}: expected whole numbers from {MIN_BITS} to {MAX_BITS}.")
    return width


def resolve_pins(pinned: Pins, layers: Sequence[LayerSpec], device: Device) -> dict[int, tuple[int, int]]:
    """Turns the `pinned` argument into (weight bits, activation bits) by layer index.

    Args:
        pinned: None; ``"first_last"`` for 8/8 in the first and last layer; or a mapping from layer names to
            bits, where one number pins weights and activations alike and a pair pins each. A layer's name pins all of
            its channel groups.
        layers: The network's layers.
        device: The device; it must support the pinned bits.

    Raises:
        QuantenvError: If a layer is unknown, or bits are not 1-8 or not supported by the device.
    """
    names = [layer.name for layer in layers]
    if pinned is None:
        wanted: dict[str, Any] = {}
    elif isinstance(pinned, Mapping):
        wanted = dict(pinned)
    elif isinstance(pinned, str) and pinned == "first_last":
        wanted = {whole(layers[0]).name: MAX_BITS, whole(layers[-1]).name: MAX_BITS}
    else:
        raise QuantenvError(
            f"pinned is {shown(pinned)}: expected None, 'first_last' or a mapping such as {{{names[0]!r}: 8}}."
        )
    pins: dict[int, tuple[int, int]] = {}
    for name, bits in wanted.items():
        indices = indices_of(name, layers)
        if not indices:
            raise unknown_name("pinned layer", name, names)
        given = plain(bits)
        pair = given if isinstance(given, tuple | list) else (given, given)
        if len(pair) != 2:
            raise QuantenvError(f"pinned[{name!r}] is {shown(bits)}: expected one bit-width or (weights, activations).")
        weight, activation = (check_bit(bit, f"pinned[{name!r}]") for bit in pair)
        if not device.supports[weight - 1, activation - 1]:
            raise QuantenvError(
                f"Layer {name!r} is pinned at {weight}/{activation} weight/activation bits, which device "
                f"{device.name!r} does not support. {_supported(device)}"
            )
        pins |= dict.fromkeys(indices, (weight, activation))
    return pins


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
        activation_bits: Bits of all activations that are not pinned, where weights alone are decided: in the modes
            ``weights`` and ``hierarchical``.
        pinned: See `resolve_pins`.
        layers: The network's layers.
        device: Says which bit-widths exist.
        tied: Groups of layer names that have the same bits; see `resolve_groups`.

    Returns:
        The walk.

    Raises:
        QuantenvError: If a name or bit-width is unknown, if every layer is pinned, if the layers of a group are
            not pinned alike, if the device supports none of the options, if channel groups of a layer could get
            different activation bits, or if decisions are hierarchical and there are no channel groups, or layers tied.
    """
    one_of(mode, "decisions", DECISIONS)
    choices = check_bits(bits)
    fixed = check_bit(activation_bits, "activation_bits")
    if mode not in FIXED_ACTIVATIONS and fixed != MAX_BITS:
        raise QuantenvError(
            f"activation_bits={fixed} fixes what decisions={mode!r} decides: use decisions='weights', or leave it out."
        )
    members = _parts(layers, tied) if mode == "hierarchical" else resolve_groups(tied, layers)
    pins = _pins_of_groups(resolve_pins(pinned, layers, device), members, layers)
    free = [group for group in range(len(members)) if group not in pins]
    if not free:
        raise QuantenvError("Every layer is pinned, so there is nothing to decide: pin fewer layers.")

    offered = np.zeros((MAX_BITS, MAX_BITS), dtype=bool)
    columns = (fixed,) if mode in FIXED_ACTIVATIONS else choices
    offered[np.ix_(np.array(choices) - 1, np.array(columns) - 1)] = True
    usable = offered & device.supports
    if not usable.any():
        what = f"activation_bits={fixed} with weight " if mode in FIXED_ACTIVATIONS else ""
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
    if mode == "hierarchical":
        return _hierarchical(choices, usable[:, fixed - 1], fixed, members, group_of, pins)
    _check_activations(mode, fixed, members, pins, layers)
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
        preference=preference(options),
    )


def _hierarchical(
    choices: tuple[int, ...],
    usable: np.ndarray,
    fixed: int,
    members: tuple[tuple[int, ...], ...],
    group_of: np.ndarray,
    pins: Mapping[int, tuple[int, int]],
) -> Walk:
    """Lays out centres and spreads; a layer that has no channel groups takes one decision, its bits.

    Args:
        choices: Bit options, ascending.
        usable: Which of 1-8 weight bits are on offer and supported beside the fixed activations, bool (8,).
        fixed: Activation bits of layers that are not pinned.
        members: Channel groups of each layer.
        group_of: Layer of each channel group.
        pins: (weight bits, activation bits) by layer.
    """
    spreads = spreads_of(len(choices))
    names = np.array(choices)[: len(spreads)]  # bit options that stand for the spreads
    flat = int(names[spreads.index("flat")])
    centres = np.flatnonzero(usable) + 1
    by_state = np.broadcast_to(np.arange(MAX_BITS + 1)[:, None], (MAX_BITS + 1,) * 2)  # flat, whatever the spread
    spread = np.tile(by_state, (len(group_of), 1, 1))
    activations = np.array([pins.get(group, (0, fixed))[1] for group in group_of.tolist()])
    allowed = np.zeros((len(members), MAX_BITS, MAX_BITS), dtype=bool)
    start = np.zeros((len(members), 2), dtype=np.int64)
    decided: list[tuple[int, Kind]] = []
    for group, rows in enumerate(members):
        if group in pins:
            start[group] = pins[group][0], flat
            allowed[group, pins[group][0] - 1, flat - 1] = True
            continue
        decided.append((group, "weights"))
        if len(rows) == 1:
            start[group, 1] = flat
            allowed[group, centres - 1, flat - 1] = True
            continue
        decided.append((group, "activations"))
        allowed[group][np.ix_(centres - 1, names - 1)] = True
        spread[np.ix_(np.array(rows), centres, names)] = spread_bits(centres.tolist(), spreads, len(rows))
    groups, kinds = zip(*decided, strict=True)
    options = np.array([(bit, 0) for bit in choices])
    return Walk(
        mode="hierarchical",
        bits=choices,
        members=members,
        group_of=group_of,
        groups=np.array(groups, dtype=np.int64),
        kinds=kinds,
        start=start,
        allowed=allowed,
        options=options,
        preference=preference(options),
        spread=spread,
        activations=activations,
    )


def _parts(layers: Sequence[LayerSpec], tied: Tied) -> tuple[tuple[int, ...], ...]:
    """Returns the channel groups of each layer, and checks that there are any and nothing else is tied."""
    if tied is not None:
        raise QuantenvError(
            "decisions='hierarchical' takes a layer's channel groups together, and nothing else can be tied: leave "
            "tied out, or use decisions='weights'."
        )
    parts = parts_of(layers)
    if len(parts) == len(layers):
        raise QuantenvError(
            "decisions='hierarchical' spreads bits over channel groups, and no layer has any: give the task channel "
            "groups (--channel_groups), or use decisions='weights'."
        )
    return parts


def _check_activations(
    mode: str,
    fixed: int,
    members: Sequence[Sequence[int]],
    pins: Mapping[int, tuple[int, int]],
    layers: Sequence[LayerSpec],
) -> None:
    """Checks that the channel groups of a layer get the same activation bits, whatever is decided.

    Raises:
        QuantenvError: If they need not.
    """
    group_of = {index: group for group, indices in enumerate(members) for index in indices}
    for part in parts_of(layers):
        groups = {group_of[index] for index in part}
        name = whole(layers[part[0]]).name
        if mode not in FIXED_ACTIVATIONS and len(groups) > 1 and not groups <= pins.keys():
            raise QuantenvError(
                f"The channel groups of layer {name!r} read the same activations, which decisions={mode!r} would "
                f"decide for each: use decisions='weights' or 'hierarchical', or tie them (tied=[[{name!r}], ...])."
            )
        if len({pins.get(group, (0, fixed))[1] for group in groups}) > 1:
            raise QuantenvError(
                f"The channel groups of layer {name!r} would have different activation bits by their pins: they read "
                "the same activations, so pin these alike."
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


def _supported(device: Device) -> str:
    weights, activations = (", ".join(map(str, bits)) for bits in (device.weight_bits, device.activation_bits))
    return f"It supports weight bits {weights} and activation bits {activations}."
