"""What is measured on a network once, before any allocation: folded weights, ranges, codebooks, statistics."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.attention import with_plain_attention
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec, describe
from quantenv.quantize.calibrate import MAX_SAMPLES, activation_grids, weight_grids
from quantenv.quantize.corrections import Statistics, bias_correction, measure
from quantenv.quantize.equalisation import equalise
from quantenv.quantize.graph import Site, find_sites, trace
from quantenv.quantize.kmeans import codebooks
from quantenv.quantize.quantizers import Codebook, Grid, Rounding
from quantenv.quantize.schemes import Scheme, parse_scheme
from quantenv.tasks import Task

CALIBRATION_BATCH = 64
LINEAR = Scheme()


@dataclass(frozen=True)
class Calibration:
    """A folded network with everything measured on it that quantizers start from."""

    graph: fx.GraphModule
    """The traced, folded float network."""
    layers: tuple[LayerSpec, ...]
    """Its quantizable layers, in execution order."""
    sites: tuple[Site, ...]
    """Its stored tensors, in execution order."""
    site_grids: dict[str, dict[int, Grid]]
    """By site node and bits."""
    inputs: torch.Tensor
    """The calibration inputs."""
    scheme: Scheme = LINEAR
    """How weights are rounded, and which steps follow."""
    normalised: tuple[str, ...] = ()
    """Names of the layers that batch norms were folded into."""

    @property
    def weight_grids(self) -> Mapping[str, Mapping[int, Rounding]]:
        """What the scheme rounds weights to, by layer name and bits."""
        return self.codebooks if self.scheme.weights == "k-means" else self.linear_grids

    @cached_property
    def linear_grids(self) -> dict[str, dict[int, Grid]]:
        """Grids of the weights, by layer name and bits; found once."""
        return {layer.name: weight_grids(folded_weight(self.graph.get_submodule(layer.name))) for layer in self.layers}

    @cached_property
    def codebooks(self) -> dict[str, dict[int, Codebook]]:
        """Codebooks of the weights, by layer name and bits; fitted once."""
        return {layer.name: codebooks(folded_weight(self.graph.get_submodule(layer.name))) for layer in self.layers}

    @cached_property
    def statistics(self) -> Statistics:
        """What the float network does on the calibration inputs; measured once, where a step needs it."""
        return measure(self.graph, [layer.name for layer in self.layers], self.inputs)

    def bias(self, layer: str, rounded: torch.Tensor) -> torch.Tensor | None:
        """Returns a layer's bias under rounded weights, corrected if the scheme says so."""
        module = self.graph.get_submodule(layer)
        bias = module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        if not self.scheme.bias:
            return None if bias is None else bias.detach()
        correction = bias_correction(module, rounded, self.statistics.mean_inputs[layer])
        return correction if bias is None else bias.detach() + correction

    def site_of(self, layer: str) -> Site:
        """Returns the site a layer reads."""
        return next(site for site in self.sites if layer in site.layers)

    def stored_bits(self, site: Site, allocation: Allocation) -> int:
        """Bits a site is stored at: the most any of its readers wants."""
        bits = dict(zip(allocation.names, allocation.activation_bits, strict=True))
        return stored_bits([bits[name] for name in site.layers], site.shared)


def calibrate(network: nn.Module, inputs: torch.Tensor, scheme: Scheme = LINEAR) -> Calibration:
    """Folds a network and finds the grids of all its weights and sites for 1-8 bits.

    Args:
        network: Float network; not changed.
        inputs: Calibration inputs, shape (N, ...).
        scheme: How weights are rounded, and which optional steps are taken.

    Returns:
        The calibration.

    Raises:
        UnsupportedLayerError: If a layer cannot be quantized or the network cannot be traced.
        QuantenvError: If the network puts out NaN or infinity on the calibration inputs.
    """
    network = with_plain_attention(network)
    layers = describe(network, inputs[:1])
    graph = trace(network)
    normalised = tuple(layer.name for layer in layers if _folding_changed(network, graph, layer.name))
    if scheme.equalisation:
        equalise(graph)
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
    return Calibration(
        graph=graph,
        layers=layers,
        sites=sites,
        site_grids={node: activation_grids(torch.cat(parts)) for node, parts in recorder.samples.items()},
        inputs=inputs,
        scheme=scheme,
        normalised=normalised,
    )


@functools.lru_cache(maxsize=4)
def calibrate_task(task: Task) -> Calibration:
    """Calibrates a task's network on its calibration split, once.

    Raises:
        QuantenvError: If the task asks for an unknown quantization scheme.
    """
    return calibrate(task.network, task.splits["calibration"].inputs, parse_scheme(task.scheme))


def _folding_changed(network: nn.Module, graph: fx.GraphModule, name: str) -> bool:
    """Whether a layer's parameters are others than in the network: a batch norm was folded into it."""
    before, after = (dict(module.get_submodule(name).named_parameters()) for module in (network, graph))
    return before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before)


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


def stored_bits(wanted: list[int], shared: bool) -> int:
    """Bits of a site: the most any reading layer wants, and 8 if something else reads it too."""
    return max([*wanted, 8] if shared else wanted)


def folded_weight(layer: nn.Module) -> torch.Tensor:
    """Returns a layer's weights, channels-last if they are a convolution's."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
