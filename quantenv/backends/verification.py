"""Whether integer arithmetic computes the network that float arithmetic simulates, layer by layer.

Integer arithmetic rounds by nature: it must not be further from the same rounding simulated in float than a few times
what that rounding changes.
"""

from collections.abc import Iterator

import torch
from torch import fx

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.integer_layer import IntegerLayer
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.sites import is_relu
from quantenv.graph.verification import REWRITTEN_ON, deviation, values_of
from quantenv.quantization.storage import decode
from quantenv.quantization.switched import SwitchedLayer, SwitchedSite

#: How far integers may be from the simulation: some of what rounding changes, as ties fall otherwise and later layers
#: magnify that (0.9 of it in a MobileNet of random weights), and a little always; and from where on a layer is named.
INTEGER_FACTOR, INTEGER_TOLERANCE, NAMED = 3, 1e-3, 0.02


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
