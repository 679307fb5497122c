"""Scales of tensors that are added, so that integer hardware adds what its simulation does.

Integer hardware multiplies each term of a sum by a number of some 15 bits (`requantization.dyadic`). Where scales have
any ratio, that number is not quite it: the simulation, which adds values, then rounds a few in a thousand sums the
other way, and later layers magnify that. So the scales are moved, by a few parts in 2**15, to where ratios are such
numbers: the sum's to fit the term whose scale is settled, then the other term's. Where both are settled, they stay.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from quantenv.graph.sites import Site, fused_relu
from quantenv.quantization.formats import Grid
from quantenv.quantization.requantization import dyadic, largest_number

_ADDS = (operator.add, torch.add, "add")


def fitted(
    graph: fx.GraphModule, sites: Sequence[Site], grids: Mapping[str, dict[int, Grid]]
) -> dict[str, dict[int, Grid]]:
    """Moves the scales of sums of two stored tensors, and of their terms, to ratios that integer hardware has.

    Args:
        graph: The folded network.
        sites: Its stored tensors.
        grids: Their grids by site and bits.

    Returns:
        The grids, exact at 8 bits, at which what is added is stored; those of fewer bits are moved alike.
    """
    found, settled = dict(grids), set[str]()
    modules, names = dict(graph.named_modules()), {site.node for site in sites}
    for node in graph.graph.nodes:
        terms = [_site(each, names) for each in node.args if isinstance(each, fx.Node)]
        target = (fused_relu(node, modules) or node).name
        if node.target not in _ADDS or len(terms) != 2 or None in terms or target not in names or target in settled:
            continue
        first, second = sorted((str(each) for each in terms), key=lambda name: name not in settled)
        scales = [float(found[name][8].scale) for name in (first, second)]
        largest = [largest_number(found[name][8]) for name in (first, second)]
        factors = dyadic(scales, float(found[target][8].scale), largest)
        if min(factors) > 0:
            total = scales[0] / factors[0]
            found[target] = _moved(found[target], total)
            if second not in settled:
                found[second] = _moved(found[second], total * factors[1])
        settled |= {first, second, target}
    return found


def _site(node: fx.Node, names: set[str]) -> str | None:
    """Returns the stored tensor that a node is, or moves."""
    while node.name not in names:
        if len(node.all_input_nodes) != 1:
            return None
        (node,) = node.all_input_nodes
    return node.name


def _moved(grids: dict[int, Grid], scale: float) -> dict[int, Grid]:
    """Returns grids of which that of 8 bits has a scale, and the others one that is moved as far."""
    ratio = scale / float(grids[8].scale)
    moved = {bits: replace(grid, scale=(grid.scale.double() * ratio).float()) for bits, grid in grids.items()}
    return {**moved, 8: replace(grids[8], scale=torch.tensor(scale, dtype=torch.float32))}
