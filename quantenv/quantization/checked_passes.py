"""Passes that rewrite a folded float network before anything is rounded, each compared with the network before it."""

import copy
from collections.abc import Collection

import torch
from torch import fx

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.naming import name_of
from quantenv.graph.passes.equalise import Pair, absorb, equalise
from quantenv.graph.verification import FLOAT_TOLERANCE, REWRITTEN_ON, deviation, is_noise, values_of
from quantenv.quantization.corrections import output_moments

#: How far absorption may move the network's outputs, relative to the root mean square over samples: it raises values
#: that lie more than three deviations below a channel's mean.
ABSORPTION_TOLERANCE = 0.1


def equalise_checked(graph: fx.GraphModule, inputs: torch.Tensor) -> None:
    """Equalises weight ranges across layers in place (see `quantenv.graph.passes.equalise.equalise`).

    Args:
        graph: The folded network.
        inputs: Calibration inputs, (N, ...).

    Raises:
        UnsupportedLayerError: If the network then computes something else; the first layer that does is named.
    """
    before = copy.deepcopy(graph)
    pairs = equalise(graph, inputs[:1])
    scaled = {name for pair in pairs for name in pair.between}
    _check(before, graph, inputs[:REWRITTEN_ON], scaled, "weight ranges are equalised across layers", "equalisation")


def absorb_checked(graph: fx.GraphModule, layers: Collection[str], inputs: torch.Tensor) -> None:
    """Absorbs biases in place (see `quantenv.graph.passes.equalise.absorb`).

    Args:
        graph: The folded network.
        layers: Names of its layers.
        inputs: Calibration inputs, (N, ...).

    Raises:
        UnsupportedLayerError: If the network then computes something else than with the values raised that absorption
            raises, or if those change its outputs by more than `ABSORPTION_TOLERANCE`.
    """
    before = copy.deepcopy(graph)
    absorbed = absorb(graph, output_moments(graph, layers, inputs), inputs[:1])
    shifted = {name for pair, _ in absorbed for name in pair.between}
    inputs = inputs[:REWRITTEN_ON]
    _check(_raised(before, absorbed), graph, inputs, shifted, "biases are absorbed by the next layer", "absorption")
    with torch.no_grad():
        moved = deviation(before(inputs), graph(inputs))
    if moved > ABSORPTION_TOLERANCE:
        raise UnsupportedLayerError(
            f"Absorbing biases moves the network's outputs by up to {moved:.1%} of their size, as too many values lie "
            f"far below their channel's mean; {ABSORPTION_TOLERANCE:.0%} is accepted. Leave +absorption out of the "
            "scheme."
        )


def _raised(graph: fx.GraphModule, absorbed: Collection[tuple[Pair, torch.Tensor]]) -> fx.GraphModule:
    """Returns what absorption makes of a network, written the other way round: ReLUs put out the constants at least."""
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.graph.nodes}
    for number, (pair, constant) in enumerate(absorbed):
        for relu, channels in pair.relus.items():
            name = f"_least_{number}_{relu}"
            result.register_buffer(name, constant[channels])
            with result.graph.inserting_after(nodes[relu]):
                least = result.graph.get_attr(name)
            with result.graph.inserting_after(least):
                raised = result.graph.call_function(torch.maximum, (nodes[relu], least))
            nodes[relu].replace_all_uses_with(raised, lambda user, raised=raised: user is not raised)
    result.recompile()
    return result


def _check(
    before: fx.GraphModule, after: fx.GraphModule, inputs: torch.Tensor, moved: Collection[str], what: str, step: str
) -> None:
    """Compares outputs before and after a pass; names the first layer that differs, but for nodes that are to move."""
    with torch.no_grad():
        found = deviation(before(inputs), after(inputs))
        if found <= FLOAT_TOLERANCE or is_noise(found, before, inputs):
            return
        computed = {node.name: value for node, value in values_of(after, inputs)}
        for node, expected in values_of(before, inputs):
            if node.name in moved or node.name not in computed:
                continue
            here = deviation(expected, computed[node.name])
            if here > FLOAT_TOLERANCE:
                raise UnsupportedLayerError(_refusal(f"{name_of(node, before)} puts", what, here, step))
    raise UnsupportedLayerError(_refusal("The network puts", what, found, step))


def _refusal(who: str, what: str, found: float, step: str) -> str:
    return (
        f"{who} out something else once {what}, before anything is rounded ({found:.2%} of its size): quantenv would "
        f"report numbers of another network. Leave +{step} out of the scheme."
    )
