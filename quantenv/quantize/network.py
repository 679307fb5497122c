"""The post-training quantized network: every bit option prepared once, an allocation chosen by swapping tensors."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec
from quantenv.locks import Lock
from quantenv.quantize.calibration import Calibration, folded_weight, grouped_rounding, stored_bits
from quantenv.quantize.graph import Site
from quantenv.quantize.quantizers import Grid, Rounding, WeightRounding, quantize


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


#: (weight bits, activation bits) of every layer, in execution order: `Allocation.bits`.
Bits = tuple[tuple[int, int], ...]
#: What one switched module is told by an allocation.
Setting = tuple[int, ...]
#: Bits of a layer's weights: of all of them, or of each of its channel groups where they differ.
WeightBits = int | tuple[int, ...]

#: Mixtures of bits, between the channel groups of a layer, whose weights are kept, the latest ones: as many as take
#: `MIXTURE_BYTES`, within these limits.
LEAST_MIXTURES, MOST_MIXTURES, MIXTURE_BYTES = 8, 64, 16 << 20


def keep(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Puts a value into a dictionary that holds at most so many; the oldest one goes."""
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


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
        """Returns (stored bits,). Of channel groups, which agree, the first of a layer is among the readers."""
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
        indices: Sequence[int],
        source: SwitchedSite,
        make_bias: Callable[[torch.Tensor], torch.Tensor | None],
        channels: Sequence[torch.Tensor] = (),
    ) -> None:
        """Makes the layer.

        Args:
            layer: The folded float layer.
            grids: What its weights are rounded to, by bits.
            indices: Its places in an allocation: one, or one for each channel group.
            source: The site it reads.
            make_bias: Maps its rounded weights to its bias.
            channels: Output channels of its channel groups; none if it is whole.
        """
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.float_weight = folded_weight(layer).detach()
        self._make_bias = make_bias
        self.bias: torch.Tensor | None = None
        self.convolution = (
            (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        )
        self.grids, self.indices, self.channels = grids, tuple(indices), tuple(channels)
        self._source = (source,)  # in a tuple, so that it does not become a submodule
        size = self.float_weight.numel() * self.float_weight.element_size()
        self.mixtures = max(LEAST_MIXTURES, min(MOST_MIXTURES, MIXTURE_BYTES // size))
        self.cache: dict[WeightBits, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.weight = self.float_weight
        self.input_grid: Grid | None = None

    @property
    def source(self) -> SwitchedSite:
        """The site that the layer reads."""
        return self._source[0]

    def setting(self, bits: Bits) -> Setting:
        """Returns (weight bits of each channel group, activation bits, stored bits of the input)."""
        weights = tuple(bits[index][0] for index in self.indices)
        return (*weights, bits[self.indices[0]][1], *self.source.setting(bits))

    def take(self, setting: Setting) -> tuple[WeightBits, int, int, Setting]:
        """Takes a setting apart: weight bits, activation bits, stored bits of the input, and what follows."""
        count = len(self.indices)
        weights, (activation_bits, stored_bits, *rest) = setting[:count], setting[count:]
        return weights[0] if len(set(weights)) == 1 else weights, activation_bits, stored_bits, tuple(rest)

    def select(self, setting: Setting) -> None:
        """Chooses the weights' bits, and a coarser grid for the input where it is stored finer than wanted."""
        weight_bits, activation_bits, stored_bits, _ = self.take(setting)
        self.weight, self.bias = self.rounded(weight_bits)
        self.input_grid = self.source.grids[activation_bits] if activation_bits < stored_bits else None

    def rounding(self, weight_bits: WeightBits) -> WeightRounding:
        """Returns what the weights are rounded to."""
        if isinstance(weight_bits, int):
            return self.grids[weight_bits]
        return grouped_rounding(self.grids, self.channels, weight_bits)

    def rounded(self, weight_bits: WeightBits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns weights and bias, made on first use and kept; mixed bits, of which there are many, for a while."""
        if weight_bits not in self.cache:
            weight = quantize(self.float_weight, self.rounding(weight_bits))
            keep(self.cache, weight_bits, (weight, self._make_bias(weight)), len(self.grids) + self.mixtures)
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

    `PrefixRunner` lets threads share one; whoever selects and calls does both in one thread, or is refused.

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
        self.lock = Lock()
        """Held by a thread from choosing an allocation until it has run."""
        self._thread: int | None = None  # that switched last; None where any may call
        self.select(Allocation.make(calibration.layers, 8, 8))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}  # another process numbers its threads otherwise

    def _build(self) -> fx.GraphModule:
        calibration = self.calibration
        indices = calibration.indices
        sites: dict[str, SwitchedSite] = {}

        def make_site(site: Site) -> nn.Module:
            readers = [indices[name][0] for name in site.layers]
            sites[site.node] = SwitchedSite(calibration.site_grids[site.node], readers, site.shared)
            return sites[site.node]

        def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
            source = sites[calibration.site_of(layer.name).node]
            make_bias = functools.partial(calibration.bias, layer.name)
            grids, channels = calibration.weight_grids[layer.name], calibration.channels[layer.name]
            return SwitchedLayer(module, grids, indices[layer.name], source, make_bias, channels)

        return rewire(calibration, make_site, make_layer)

    def settings(self, allocation: Allocation) -> tuple[Setting, ...]:
        """Returns what an allocation tells every switched module, in execution order.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        bits = allocation.check_fits(self.calibration.layers).bits
        return tuple(module.setting(bits) for module in self._switched)

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
        settings = self.settings(allocation)
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
