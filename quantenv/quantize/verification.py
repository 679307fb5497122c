"""Whether what is quantized computes what the user's network does: compared on real inputs, once, layer by layer.

The network, its folded trace, and the rewritten network with rounding left out must agree to float precision. What is
left between float and quantized numbers is then rounding and nothing else. Integer arithmetic, which rounds by nature,
must not be further from the same rounding simulated in float than a few times what that rounding changes.
"""

import functools
import threading
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantenv.errors import UnsupportedLayerError
from quantenv.layers import LayerSpec
from quantenv.plain.identity import InDoublePrecision
from quantenv.quantize.calibration import Calibration
from quantenv.quantize.graph import Site, is_relu
from quantenv.quantize.integer import IntegerNetwork
from quantenv.quantize.integer_layer import IntegerLayer
from quantenv.quantize.naming import name_of
from quantenv.quantize.network import QuantizedNetwork, rewire
from quantenv.quantize.storage import decode
from quantenv.quantize.switched import SwitchedLayer, SwitchedSite

#: Differences that float arithmetic in another order explains, relative to the root mean square over samples.
FLOAT_TOLERANCE = 1e-4
#: The same for a layer whose differences do not reach the outputs.
LAYER_TOLERANCE = 1e-3
#: Where there are larger ones, how much larger than those that single precision itself makes they may be.
NOISE_FACTOR = 30
#: How far integers may be from the simulation: some of what rounding changes, as ties fall otherwise and later layers
#: magnify that (0.9 of it in a MobileNet of random weights), and a little always; and from where on a layer is named.
INTEGER_FACTOR, INTEGER_TOLERANCE, NAMED = 3, 1e-3, 0.02
#: Samples whose values are compared layer by layer, and calibration inputs that rewritten networks run on.
BY_LAYER, REWRITTEN_ON = 4, 32


def check_trace(network: nn.Module, graph: fx.GraphModule, inputs: torch.Tensor, batch: int) -> None:
    """Checks that a folded trace computes what the network does: on the first batch in every layer, then on all.

    Args:
        network: The network, in eval mode.
        graph: From `quantenv.quantize.tracing.trace`.
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


def check_rewritten(calibration: Calibration) -> None:
    """Checks that the quantized network, with rounding left out, computes what the folded float network does.

    Raises:
        UnsupportedLayerError: If it does not; the first layer or operation that puts out something else is named.
    """
    inputs = calibration.inputs[:REWRITTEN_ON]
    rewritten, graph = without_rounding(calibration), calibration.graph
    with torch.no_grad():
        difference = deviation(graph(inputs), rewritten(inputs))
        if difference <= FLOAT_TOLERANCE or is_noise(difference, graph, inputs):
            return
        inputs = inputs[:BY_LAYER]
        computed = {node.name: value for node, value in values_of(rewritten, inputs)}
        for node, expected in values_of(graph, inputs):
            value = computed.get(node.name, expected)  # ReLUs whose work a site does are gone
            if deviation(expected, value) > FLOAT_TOLERANCE:
                raise UnsupportedLayerError(
                    f"{name_of(node, graph)} puts out something else once it is rewritten for quantization, before "
                    f"anything is rounded ({deviation(expected, value):.2%} of its size): quantenv would report "
                    "numbers of another network. Express it with plain layers, without hooks."
                )
    raise UnsupportedLayerError(
        f"{graph.__class__.__name__} puts out something else once it is rewritten for quantization, before anything is "
        "rounded: quantenv would report numbers of another network. Express it with plain layers, without hooks."
    )


def check_integers(integers: IntegerNetwork) -> None:
    """Checks that integer arithmetic computes the network that float arithmetic simulates, at the bits it is made with.

    Raises:
        UnsupportedLayerError: If they differ by far more than rounding changes the float network; the first layer that
            differs is named.
    """
    calibration = integers.calibration
    inputs = calibration.inputs[:REWRITTEN_ON]
    floats = QuantizedNetwork(calibration)
    with torch.no_grad():
        exact, simulated, computed = calibration.graph(inputs), floats(inputs), integers(inputs)
        allowed = INTEGER_FACTOR * (simulated - exact).norm() + INTEGER_TOLERANCE * exact.norm()
        if (computed - simulated).norm() <= allowed:
            return
        for (name, expected), (_, value) in zip(_layer_values(floats), _integer_values(integers), strict=True):
            if deviation(expected, value) > NAMED:
                raise UnsupportedLayerError(
                    f"In integer arithmetic, {name} puts out something else than the same rounding simulated in float "
                    f"({deviation(expected, value):.1%} of its size). Use backend 'float' (--evaluator ptq-float)."
                )
    raise UnsupportedLayerError(
        "In integer arithmetic the network puts out something else than the same rounding simulated in float. Use "
        "backend 'float' (--evaluator ptq-float)."
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


class _Unrounded(nn.Module):
    """A site that rounds nothing; it still does the work of the ReLU that `rewire` drops in front of it."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.clamped = low >= 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0) if self.clamped else x


def without_rounding(calibration: Calibration, but: Collection[str] = ()) -> fx.GraphModule:
    """Rewrites a network as `QuantizedNetwork` does, with float weights and sites that round nothing.

    Args:
        calibration: What to rewrite; not changed.
        but: Nodes of sites that round to 8 bits all the same.
    """
    sites: dict[str, SwitchedSite] = {}

    def make_site(site: Site) -> nn.Module:
        grids = calibration.site_grids[site.node]
        sites[site.node] = SwitchedSite(grids, [], site.shared)
        return sites[site.node] if site.node in but else _Unrounded(grids[8].low)

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        source = sites[calibration.site_of(layer.name).node]
        nothing, indices = torch.empty(0), calibration.indices[layer.name]
        switched = SwitchedLayer(layer.name, module, {}, indices, source, lambda bits: nothing, lambda weight: None)
        switched.bias = module.bias  # type: ignore[assignment]
        return switched

    return rewire(calibration, make_site, make_layer)


def _layer_values(floats: QuantizedNetwork) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields what each layer puts out, rounded where a stored tensor alone reads it, by its name."""
    modules = dict(floats.module.named_modules())
    values = dict(values_of(floats.module, floats.calibration.inputs[:REWRITTEN_ON]))
    graph = floats.calibration.graph
    for node in values:
        if node.op == "call_module" and isinstance(modules[str(node.target)], SwitchedLayer):
            behind = node
            while len(behind.users) == 1 and not isinstance(modules.get(str(behind.target)), SwitchedSite):
                (behind,) = behind.users
                if not is_relu(behind, modules) and not isinstance(modules.get(str(behind.target)), SwitchedSite):
                    break
            stored = isinstance(modules.get(str(behind.target)), SwitchedSite)
            kind = type(graph.get_submodule(str(node.target))).__name__
            yield f"{kind} {str(node.target)!r}", values[behind if stored else node]


def _integer_values(integers: IntegerNetwork) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the same as `_layer_values`, of integer arithmetic, by the name of their node."""
    found: list[tuple[str, torch.Tensor]] = []
    storage = integers.storage

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
            if isinstance(layer, IntegerLayer):
                assert isinstance(value, torch.Tensor)
                target = layer.target
                stored = value if target is None else decode(storage.numbers(value, target.grid), target.grid)
                found.append((n.name, stored))
            return value

    Recorder(integers.module).run(integers.calibration.inputs[:REWRITTEN_ON])
    return iter(found)
