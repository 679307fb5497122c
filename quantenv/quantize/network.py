"""The post-training quantized network: every bit option prepared once, an allocation chosen by swapping tensors."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.layers import LayerSpec
from quantenv.quantize.calibration import Calibration, folded_weight, stored_bits
from quantenv.quantize.graph import Site
from quantenv.quantize.quantizers import Grid, Rounding, quantize


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
        make_layer: Makes the replacement of a layer from its description and its folded float module.

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
    for layer in calibration.layers:
        graph_module.set_submodule(layer.name, make_layer(layer, graph_module.get_submodule(layer.name)))
    graph_module.graph = graph
    graph_module.delete_all_unused_submodules()
    return graph_module


#: (weight bits, activation bits) of every layer, in execution order: `Allocation.bits`.
Bits = tuple[tuple[int, int], ...]
#: What one switched module is told by an allocation.
Setting = tuple[int, ...]


class Switched(nn.Module):
    """A module of the quantized graph that an allocation switches."""

    def setting(self, bits: Bits) -> Setting:
        """Returns the part of an allocation that this module depends on: equal settings, equal outputs."""
        raise TypeError(f"{type(self).__name__} does not say what it depends on.")

    def select(self, setting: Setting) -> None:
        """Switches to a setting."""
        raise TypeError(f"{type(self).__name__} cannot be switched.")


class SwitchedSite(Switched):
    """A site whose grids are all at hand, chosen by the bits it is stored at: the most any of its readers wants."""

    def __init__(self, grids: dict[int, Grid], readers: Sequence[int], shared: bool) -> None:
        super().__init__()
        self.grids, self.readers, self.shared = grids, readers, shared
        self.grid = grids[8]

    def setting(self, bits: Bits) -> Setting:
        """Returns (stored bits,)."""
        return (stored_bits([bits[index][1] for index in self.readers], self.shared),)

    def select(self, setting: Setting) -> None:
        """Chooses the stored bits."""
        self.grid = self.grids[setting[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds to the chosen grid."""
        return quantize(x, self.grid)


class SwitchedLayer(Switched):
    """A Conv2d or Linear whose quantized weights are all at hand, chosen by bits."""

    def __init__(
        self,
        layer: nn.Module,
        grids: Mapping[int, Rounding],
        index: int,
        source: SwitchedSite,
        make_bias: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        """Makes the layer.

        Args:
            layer: The folded float layer.
            grids: What its weights are rounded to, by bits.
            index: Its place in an allocation.
            source: The site it reads.
            make_bias: Maps its rounded weights to its bias.
        """
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.float_weight = folded_weight(layer).detach()
        self._make_bias = make_bias
        self.bias: torch.Tensor | None = None
        self.convolution = (
            (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        )
        self.grids, self.index = grids, index
        self._source = (source,)  # in a tuple, so that it does not become a submodule
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.weight = self.float_weight
        self.input_grid: Grid | None = None

    @property
    def source(self) -> SwitchedSite:
        """The site that the layer reads."""
        return self._source[0]

    def setting(self, bits: Bits) -> Setting:
        """Returns (weight bits, activation bits, stored bits of the input)."""
        return (*bits[self.index], *self.source.setting(bits))

    def select(self, setting: Setting) -> None:
        """Chooses the weights' bits, and a coarser grid for the input where it is stored finer than wanted."""
        weight_bits, activation_bits, stored_bits = setting
        self.weight, self.bias = self.rounded(weight_bits)
        self.input_grid = self.source.grids[activation_bits] if activation_bits < stored_bits else None

    def rounded(self, weight_bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns weights and bias at a bit-width, made on first use."""
        if weight_bits not in self.cache:
            weight = quantize(self.float_weight, self.grids[weight_bits])
            self.cache[weight_bits] = weight, self._make_bias(weight)
        return self.cache[weight_bits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, H, W) or (B, ..., F)."""
        if self.input_grid is not None:
            x = quantize(x, self.input_grid)
        if self.convolution is None:
            return F.linear(x, self.weight, self.bias)
        stride, padding, dilation, groups = self.convolution
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class QuantizedNetwork:
    """A post-training quantized network whose allocation is changed by swapping tensors.

    Args:
        calibration: The calibrated network.
    """

    value_bytes: ClassVar[int] = 4
    """Bytes of a stored value."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.module = self._build()
        self._switched = [
            module
            for node in self.module.graph.nodes
            if node.op == "call_module" and isinstance(module := self.module.get_submodule(str(node.target)), Switched)
        ]
        self._selected: list[Setting | None] = [None] * len(self._switched)
        self.select(Allocation.make(calibration.layers, 8, 8))

    def _build(self) -> fx.GraphModule:
        calibration = self.calibration
        indices = {layer.name: index for index, layer in enumerate(calibration.layers)}
        sites: dict[str, SwitchedSite] = {}

        def make_site(site: Site) -> nn.Module:
            readers = [indices[name] for name in site.layers]
            sites[site.node] = SwitchedSite(calibration.site_grids[site.node], readers, site.shared)
            return sites[site.node]

        def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
            source = sites[calibration.site_of(layer.name).node]
            make_bias = functools.partial(calibration.bias, layer.name)
            return SwitchedLayer(module, calibration.weight_grids[layer.name], indices[layer.name], source, make_bias)

        return rewire(calibration, make_site, make_layer)

    def settings(self, allocation: Allocation) -> tuple[Setting, ...]:
        """Returns what an allocation tells every switched module, in execution order.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        bits = allocation.check_fits(self.calibration.layers).bits
        return tuple(module.setting(bits) for module in self._switched)

    def switch(self, settings: Sequence[Setting], start: int = 0) -> None:
        """Switches the modules from the `start`-th on, in execution order, to their settings."""
        for index in range(start, len(self._switched)):
            if self._selected[index] != settings[index]:
                self._switched[index].select(settings[index])
                self._selected[index] = settings[index]

    def select(self, allocation: Allocation) -> None:
        """Gives every layer and site the allocation's bits.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        self.switch(self.settings(allocation))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the logits, shape (B, classes), under the selected allocation."""
        with torch.inference_mode():
            return self.module(inputs)


def _is_plain_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, F.relu, "relu")
