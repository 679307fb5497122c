"""The post-training quantized network: every bit option prepared once, an allocation chosen by swapping tensors."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec
from quantenv.locks import Lock
from quantenv.quantize.accumulators import Accumulators, FloatAccumulators
from quantenv.quantize.calibration import REESTIMATED_ON, Calibration
from quantenv.quantize.graph import Site
from quantenv.quantize.integer_graph import to_integers
from quantenv.quantize.reestimation import CHUNK, Reestimation
from quantenv.quantize.storage import FloatStorage, Storage
from quantenv.quantize.switched import ChannelMap, Setting, Switched, SwitchedLayer, SwitchedSite


def rewire(
    calibration: Calibration,
    make_site: Callable[[Site], nn.Module],
    make_layer: Callable[[LayerSpec, nn.Module], nn.Module],
) -> fx.GraphModule:
    """Puts quantizers on every site and replaces every quantizable layer.

    A ReLU in front of a site whose grids have no negative values is dropped: clamping does its work.

    Args:
        calibration: What to rewire; not changed.
        make_site: Makes the quantizer module of a site.
        make_layer: Makes the replacement of a layer from its description, as a whole, and its folded float module.

    Returns:
        A new graph module.
    """
    graph_module = fx.GraphModule(calibration.graph, calibration.graph.graph)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(calibration.graph.graph, copied)
    graph.output(output)
    nodes = {old.name: new for old, new in copied.items()}
    for index, site in enumerate(calibration.sites):
        node = nodes[site.node]
        name = f"site_{index}"
        graph_module.add_submodule(name, make_site(site))
        with graph.inserting_after(node):
            stored = graph.call_module(name)
        node.replace_all_uses_with(stored)
        stored.args = (node,)
        source = node.args[0] if node.args else None
        if _is_plain_relu(graph_module, node) and isinstance(source, fx.Node) and len(source.users) == 1:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    for layer in calibration.modules:
        graph_module.set_submodule(layer.name, make_layer(layer, graph_module.get_submodule(layer.name)))
    graph_module.graph = graph
    graph_module.delete_all_unused_submodules()
    return graph_module


def simulated(calibration: Calibration) -> fx.GraphModule:
    """Returns a network in float, of `SwitchedLayer` and `SwitchedSite`."""
    indices = calibration.indices
    sites: dict[str, SwitchedSite] = {}

    def make_site(site: Site) -> nn.Module:
        readers = [indices[name][0] for name in site.layers]
        sites[site.node] = SwitchedSite(calibration.site_grids[site.node], readers, site.shared)
        return sites[site.node]

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        source = sites[calibration.site_of(layer.name).node]
        round_weights = functools.partial(calibration.rounded, layer.name)
        make_bias = functools.partial(calibration.bias, layer.name)
        grids, channels = calibration.weight_grids[layer.name], calibration.channels[layer.name]
        return SwitchedLayer(layer.name, module, grids, indices[layer.name], source, round_weights, make_bias, channels)

    return rewire(calibration, make_site, make_layer)


class QuantizedNetwork:
    """A post-training quantized network whose allocation is changed by swapping tensors.

    `PrefixRunner` lets threads share one; whoever selects and calls does both in one thread, or is refused.

    Args:
        calibration: The calibrated network.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._simulated = simulated(calibration)
        self.module = self._build()
        self._switched = [
            module
            for node in self.module.graph.nodes
            if node.op == "call_module" and isinstance(module := self.module.get_submodule(str(node.target)), Switched)
        ]
        self._selected: list[Setting | None] = [None] * len(self._switched)
        self.lock = Lock()
        """Held by a thread from choosing an allocation until it has run."""
        self._thread: int | None = None  # that switched last; None where any may call
        self._reestimation = self._reestimate() if calibration.reestimated else None
        self.select(Allocation.make(calibration.layers, 8, 8))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}  # another process numbers its threads otherwise

    def _build(self) -> fx.GraphModule:
        return self._simulated

    def _reestimate(self) -> Reestimation:
        inputs, largest = self.calibration.inputs[:REESTIMATED_ON], max(s.features for s in self.calibration.sites)
        program = to_integers(
            self.calibration, self._simulated, self.storage, self._accumulators, self.calibration.reestimated
        )
        return Reestimation(program.module, inputs, max(1, CHUNK // largest))

    @property
    def storage(self) -> Storage:
        """How whole numbers are held where batch norms are estimated again."""
        return FloatStorage()

    def _accumulators(self, layer: SwitchedLayer) -> Accumulators:
        return FloatAccumulators(layer)

    def maps(self, allocations: Sequence[Allocation]) -> list[Mapping[str, ChannelMap]]:
        """Returns what re-estimation of batch norms does, by layer, under each allocation; see `Reestimation.maps`.

        Raises:
            AllocationError: If an allocation is for other layers.
        """
        bits = [allocation.check_fits(self.calibration.layers).bits for allocation in allocations]
        if self._reestimation is None:
            return [{} for _ in bits]
        with self.lock:
            return self._reestimation.maps(bits)

    def settings(self, allocations: Sequence[Allocation]) -> list[tuple[Setting, ...]]:
        """Returns what allocations tell every switched module, in execution order.

        Batch norms, where the scheme estimates them again, are so here; what allocations share is, once.

        Raises:
            AllocationError: If an allocation is for other layers.
        """
        bits = [allocation.check_fits(self.calibration.layers).bits for allocation in allocations]
        settings = [tuple(module.setting(each) for module in self._switched) for each in bits]
        maps = self.maps(allocations)
        names = [module.name for module in self._switched]
        return [
            tuple((*part, of[name]) if name in of else part for name, part in zip(names, setting, strict=True))
            for setting, of in zip(settings, maps, strict=True)
        ]

    def switch(self, settings: Sequence[Setting], start: int = 0) -> None:
        """Switches the modules from the `start`-th on, in execution order; whoever shares the network holds `lock`."""
        self._thread = threading.get_ident()
        for index in range(start, len(self._switched)):
            if self._selected[index] != settings[index]:
                self._switched[index].select(settings[index])
                self._selected[index] = settings[index]

    def select(self, allocation: Allocation) -> None:
        """Gives every layer and site the allocation's bits.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        (settings,) = self.settings([allocation])
        with self.lock:
            self.switch(settings)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the logits, shape (B, classes), under the selected allocation.

        Raises:
            QuantenvError: If another thread has selected an allocation since this one did.
        """
        with self.lock, torch.inference_mode():
            if self._thread not in (None, threading.get_ident()):
                raise QuantenvError(
                    "The network's allocation was selected by another thread, so its outputs would be those of that "
                    "allocation: give each thread a network of its own, or share an evaluator, which sees to it."
                )
            return self.module(inputs)


def _is_plain_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, F.relu, "relu")
