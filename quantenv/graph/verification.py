"""Whether a traced network computes what the user's network does: compared on real inputs, once, layer by layer."""

import functools
import threading
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.identity import InDoublePrecision
from quantenv.graph.naming import name_of

#: Differences that float arithmetic in another order explains, relative to the root mean square over samples.
FLOAT_TOLERANCE = 1e-4


#: The same for a layer whose differences do not reach the outputs.
LAYER_TOLERANCE = 1e-3


#: Where there are larger ones, how much larger than those that single precision itself makes they may be.
NOISE_FACTOR = 30


#: Samples whose values are compared layer by layer, and calibration inputs that rewritten networks run on.
BY_LAYER, REWRITTEN_ON = 4, 32


def check_trace(network: nn.Module, graph: fx.GraphModule, inputs: torch.Tensor, batch: int) -> None:
    """Checks that a folded trace computes what the network does: on the first batch in every layer, then on all.

    Args:
        network: The network, in eval mode.
        graph: From `quantenv.graph.tracing.trace`.
        inputs: Samples, (N, ...).
        batch: How many are run at once.

    Raises:
        UnsupportedLayerError: If it does not; the first layer that puts out something else is named.
    """
    with torch.no_grad():
        layer, difference = _first_layer(network, graph, inputs[:BY_LAYER], LAYER_TOLERANCE)
        if layer and not is_noise(difference, network, inputs[:BY_LAYER]):
            raise _other_outputs(network, layer, difference)
        for part in inputs.split(batch):
            differences = _differences(network(part), graph(part))
            difference, worst = float(differences.max()), part[differences.argmax()][None]
            if difference > FLOAT_TOLERANCE and not is_noise(difference, network, part):
                layer, within = _first_layer(network, graph, worst, FLOAT_TOLERANCE)
                raise _other_outputs(network, layer, within or difference)


def _other_outputs(network: nn.Module, layer: str, difference: float) -> UnsupportedLayerError:
    first = f", first in {layer}" if layer else ""
    return UnsupportedLayerError(
        f"Traced with torch.fx, {type(network).__name__} puts out something else{first}: {difference:.2%} of its size, "
        f"where float arithmetic explains {FLOAT_TOLERANCE:.2%}. Its forward() must be a function of its input alone, "
        "the same for every batch, without hooks that change values, and change no view of a tensor in place."
    )


def first_not_finite(graph: fx.GraphModule, inputs: torch.Tensor) -> str:
    """Says which layer or operation is the first to put out NaN on some inputs, or else infinity, where one does."""
    with torch.no_grad():
        values = list(values_of(graph, inputs))
    for wrong in (torch.isnan, torch.isinf):
        for node, value in values:
            if wrong(value).any():
                return f", first in {name_of(node, graph)}"
    return ""


def _differences(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Returns the difference of every sample, (N,), relative to the root mean square over samples.

    It is 0 where the network's own outputs are not finite, which is refused elsewhere.
    """
    if expected.shape != found.shape:
        return torch.full((len(expected),), torch.inf)
    wide, other = expected.double().flatten(1), found.double().flatten(1)
    size = wide.square().sum(1).mean().sqrt()
    differences = (other - wide).norm(dim=1) / size.clamp(min=torch.finfo(torch.float64).tiny)
    return differences if size.isfinite() else torch.zeros(len(expected))


def deviation(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Returns the largest difference of a sample."""
    return float(_differences(expected, found).max())


def is_noise(difference: float, network: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether single precision itself changes a network's outputs hardly less."""
    narrow = network(inputs)
    try:
        with InDoublePrecision():
            wide = network(inputs.double())
    except (RuntimeError, TypeError, ValueError):  # it insists on a type
        return False
    return difference <= NOISE_FACTOR * deviation(wide, narrow)


def values_of(graph: fx.GraphModule, inputs: torch.Tensor) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """Runs a graph and yields its nodes with what they hold, where that is one tensor of floats for each sample."""
    found: list[tuple[fx.Node, torch.Tensor]] = []

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and n.op != "output" and value.dim():
                found.append((n, value.clone()))
            return value

    Recorder(graph).run(inputs)
    return iter(found)


def _first_layer(
    network: nn.Module, graph: fx.GraphModule, inputs: torch.Tensor, tolerance: float
) -> tuple[str, float]:
    """Returns the name of the first layer of a trace that puts out something else than in the network, and by how much.

    The name is empty if there is none.
    """
    seen: list[tuple[str, torch.Tensor]] = []
    norms: list[tuple[int, torch.Tensor]] = []  # with how many modules had run before
    thread = threading.get_ident()

    def record(name: str, module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and threading.get_ident() == thread:
            if isinstance(module, _BatchNorm):
                norms.append((len(seen), output.clone()))
            seen.append((name, output.clone()))

    handles = [
        module.register_forward_hook(functools.partial(record, name)) for name, module in network.named_modules()
    ]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node, value in values_of(graph, inputs):
        places = [place for place, (name, _) in enumerate(seen) if name == node.target]
        if node.op != "call_module" or calls[node.target] > 1 or not places:
            continue
        # A layer puts out what the batch norm did that was folded into it: one of those that ran later.
        outputs = [seen[places[0]][1], *(output for before, output in norms if before > places[0])]
        difference = min(deviation(output, value) for output in outputs if output.shape == value.shape)
        if difference > tolerance:
            return name_of(node, graph), difference
    return "", 0.0
