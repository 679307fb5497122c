"""Hierarchical decisions: a layer's bits first, then how they are spread over its channel groups.

However many groups a layer has, it takes two decisions: the bits of the layer, the *centre*, and one of a few *spreads*
that move some groups one option up or down. Groups are sorted by sensitivity, so a spread never gives a group more bits
than one before it. Bits that would leave the options stay at the last one.
"""

from collections.abc import Callable, Sequence

import numpy as np

#: Steps of each of R groups, the most sensitive first, by spread: from the fewest bits in all to the most.
SPREADS: dict[str, Callable[[int], list[int]]] = {
    "half down": lambda groups: [0] * (groups - groups // 2) + [-1] * (groups // 2),
    "last down": lambda groups: [0] * (groups - 1) + [-1],
    "flat": lambda groups: [0] * groups,
    "ends apart": lambda groups: [1] + [0] * (groups - 2) + [-1],
    "halves apart": lambda groups: [1] * (groups // 2) + [0] * (groups % 2) + [-1] * (groups // 2),
    "first up": lambda groups: [1] + [0] * (groups - 1),
    "half up": lambda groups: [1] * (groups // 2) + [0] * (groups - groups // 2),
}

#: The spreads in the order in which they are taken in: as many as there are bit options, so that both decisions have
#: equally many actions.
FIRST = ("flat", "ends apart", "first up", "last down", "halves apart", "half up", "half down")


def spreads_of(count: int) -> tuple[str, ...]:
    """Returns the names of the spreads where there are so many bit options, from the fewest bits to the most."""
    return tuple(name for name in SPREADS if name in FIRST[:count])


def spread_bits(choices: Sequence[int], spreads: Sequence[str], groups: int) -> np.ndarray:
    """Works out the bits of the groups of one layer.

    Args:
        choices: Bit options, ascending, length C.
        spreads: Names of `SPREADS`, length S.
        groups: Channel groups of the layer, R, at least 2.

    Returns:
        Weight bits of each group, for each option as the centre, under each spread, int64 (R, C, S).
    """
    offsets = np.array([SPREADS[name](groups) for name in spreads])
    positions = np.arange(len(choices))[None, :, None] + offsets.T[:, None, :]
    return np.array(choices)[np.clip(positions, 0, len(choices) - 1)]
