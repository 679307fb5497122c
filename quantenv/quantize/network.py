"""The post-training quantized network: every bit option prepared once, an allocation chosen by swapping tensors."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError, unknown_name
from quantenv.layers import LayerSpec, describe
from quantenv.quantize.calibrate import MAX_SAMPLES, activation_grids, weight_grids
from quantenv.quantize.graph import Site, find_sites, trace
from quantenv.quantize.quantizers import Grid, LinearQuantizer, quantize
from quantenv.tasks import Task

CALIBRATION_BATCH = 64
#: Quantization schemes a task may ask for, each with the version of its numbers (part of evaluators' identities).
SCHEMES = {"linear": "linear-mse-folded-1"}


@dataclass(frozen=True)
class Calibration:
    """A folded network with everything measured on it that quantizers start from."""

    graph: fx.GraphModule
    """The traced, folded float network."""
    layers: tuple[LayerSpec, ...]
    """Its quantizable layers, in execution order."""
    sites: tuple[Site, ...]
    """Its stored tensors, in execution order."""
    weight_grids: dict[str, dict[int, Grid]]
    """By layer name and bits."""
    site_grids: dict[str, dict[int, Grid]]
    """By site node and bits."""

    def site_of(self, layer: str) -> Site:
        """Returns the site a layer reads."""
        return next(site for site in self.sites if layer in site.layers)

    def stored_bits(self, site: Site, allocation: Allocation) -> int:
        """Bits a site is stored at: the most any of its readers wants."""
        bits = dict(zip(allocation.names, allocation.activation_bits, strict=True))
        return max([bits[name] for name in site.layers] + [8] * site.shared)


def calibrate(network: nn.Module, inputs: torch.Tensor) -> Calibration:
    """Folds a network and finds the grids of all its weights and sites for 1-8 bits.

    Args:
        network: Float network; not changed.
        inputs: Calibration inputs, shape (N, ...).

    Returns:
        The calibration.

    Raises:
        UnsupportedLayerError: If a layer cannot be quantized or the network cannot be traced.
        QuantenvError: If the network puts out NaN or infinity on the calibration inputs.
    """
    layers = describe(network, inputs[:1])
    graph = trace(network)
    sites = find_sites(graph, inputs[:1])
    recorder = _SiteRecorder(
        graph, {site.node for site in sites}, per_batch=MAX_SAMPLES * CALIBRATION_BATCH // len(inputs)
    )
    with torch.no_grad():
        for batch in inputs.split(CALIBRATION_BATCH):
            if not torch.isfinite(recorder.run(batch)).all():
                raise QuantenvError(
                    f"{type(network).__name__} puts out NaN or infinity on the calibration inputs; "
                    "check its weights and the inputs' normalisation."
                )
    modules = dict(graph.named_modules())
    return Calibration(
        graph=graph,
        layers=layers,
        sites=sites,
        weight_grids={layer.name: weight_grids(_weight(modules[layer.name])) for layer in layers},
        site_grids={node: activation_grids(torch.cat(parts)) for node, parts in recorder.samples.items()},
    )


@functools.lru_cache(maxsize=4)
def calibrate_task(task: Task) -> Calibration:
    """Calibrates a task's network on its calibration split, once.

    Raises:
        QuantenvError: If the task asks for an unknown quantization scheme.
    """
    if task.scheme not in SCHEMES:
        raise unknown_name("quantization scheme", task.scheme, SCHEMES)
    return calibrate(task.network, task.splits["calibration"].inputs)


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


class SwitchedLayer(nn.Module):
    """A Conv2d or Linear whose quantized weights are all at hand, chosen by `bits`."""

    def __init__(self, layer: nn.Module, grids: dict[int, Grid], input_grids: dict[int, Grid]) -> None:
        super().__init__()
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise QuantenvError(f"Cannot quantize a {type(layer).__name__}.")
        self.float_weight = _weight(layer).detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.convolution = (
            (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        )
        self.grids, self.input_grids = grids, input_grids
        self.cache: dict[int, torch.Tensor] = {}
        self.weight = self.float_weight
        self.requantizer: LinearQuantizer | None = None

    def select(self, weight_bits: int, activation_bits: int, stored_bits: int) -> None:
        """Chooses the weights' bits, and a coarser grid for the input where it is stored finer than wanted."""
        if weight_bits not in self.cache:
            self.cache[weight_bits] = quantize(self.float_weight, self.grids[weight_bits])
        self.weight = self.cache[weight_bits]
        coarser = activation_bits < stored_bits
        self.requantizer = LinearQuantizer(self.input_grids[activation_bits]) if coarser else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, H, W) or (B, ..., F)."""
        if self.requantizer is not None:
            x = self.requantizer(x)
        if self.convolution is None:
            return F.linear(x, self.weight, self.bias)
        stride, padding, dilation, groups = self.convolution
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class SwitchedSite(nn.Module):
    """A site whose grids are all at hand, chosen by bits."""

    def __init__(self, grids: dict[int, Grid]) -> None:
        super().__init__()
        self.grids = grids
        self.grid = grids[8]

    def select(self, bits: int) -> None:
        """Chooses the stored bits."""
        self.grid = self.grids[bits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds to the chosen grid."""
        return quantize(x, self.grid)


class QuantizedNetwork:
    """A post-training quantized network whose allocation is changed by swapping tensors.

    Args:
        calibration: The calibrated network.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._sites: dict[str, SwitchedSite] = {}
        self._layers: dict[str, SwitchedLayer] = {}

        def make_site(site: Site) -> nn.Module:
            self._sites[site.node] = SwitchedSite(calibration.site_grids[site.node])
            return self._sites[site.node]

        def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
            input_grids = calibration.site_grids[calibration.site_of(layer.name).node]
            self._layers[layer.name] = SwitchedLayer(module, calibration.weight_grids[layer.name], input_grids)
            return self._layers[layer.name]

        self.module = rewire(calibration, make_site, make_layer)
        self.select(Allocation.make(calibration.layers, 8, 8))

    def select(self, allocation: Allocation) -> None:
        """Gives every layer and site the allocation's bits.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        allocation = allocation.check_fits(self.calibration.layers)
        for site in self.calibration.sites:
            stored = self.calibration.stored_bits(site, allocation)
            self._sites[site.node].select(stored)
            for name in site.layers:
                index = allocation.names.index(name)
                self._layers[name].select(allocation.weight_bits[index], allocation.activation_bits[index], stored)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the logits, shape (B, classes), under the selected allocation."""
        with torch.inference_mode():
            return self.module(inputs)


class _SiteRecorder(fx.Interpreter):
    """Runs the float graph and keeps strided samples, and the extremes, of every site."""

    def __init__(self, graph: fx.GraphModule, nodes: set[str], per_batch: int) -> None:
        super().__init__(graph)
        self.samples: dict[str, list[torch.Tensor]] = {node: [] for node in nodes}
        self.per_batch = max(1, per_batch)

    def run_node(self, n: fx.Node) -> torch.Tensor:
        value = super().run_node(n)
        if n.name in self.samples:
            flat = value.flatten()
            extremes = torch.stack([flat.min(), flat.max()])
            self.samples[n.name].append(torch.cat([flat[:: max(1, len(flat) // self.per_batch)], extremes]))
        return value


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def _is_plain_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, F.relu, "relu")
