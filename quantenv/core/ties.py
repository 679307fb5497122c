"""Tied layers: groups of layers that always have the same bits. A layer that is not tied is a group of one.

The name of a layer that is cut into channel groups stands for all of them.
"""

from collections.abc import Sequence

from quantenv.core.arguments import listed
from quantenv.core.channel_groups import indices_of
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.layers import LayerSpec

Tied = Sequence[Sequence[str]] | None


def resolve_groups(tied: Tied, layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """Turns groups of layer names into a partition of all layers.

    Args:
        tied: Groups of layer names; layers in none of them are groups of their own. None ties nothing.
        layers: The network's layers.

    Returns:
        Layer indices of each group, ascending; groups in the order of their first layer.

    Raises:
        QuantenvError: If a layer is unknown or in two groups, or a group is empty or no sequence of names.
    """
    names = [layer.name for layer in layers]
    groups: list[tuple[int, ...]] = []
    seen: set[int] = set()
    what = f"groups of layer names, such as [[{names[0]!r}, ...]]"
    for group in () if tied is None else listed(tied, "tied", what):
        listed_names = listed(group, "A group of tied", f"layer names: tied takes {what}")
        if not listed_names:
            raise QuantenvError(f"tied holds an empty group: it takes {what}.")
        members: list[int] = []
        for name in listed_names:
            indices = indices_of(name, layers)
            if not indices:
                raise unknown_name("tied layer", name, names)
            if not seen.isdisjoint(indices):
                raise QuantenvError(f"Layer {name!r} is tied more than once: name each layer in one group, once.")
            seen.update(indices)
            members += indices
        groups.append(tuple(sorted(members)))
    groups += [(index,) for index in range(len(names)) if index not in seen]
    return tuple(sorted(groups))
