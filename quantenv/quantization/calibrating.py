"""From a float network to its calibration: by measuring, or from the numbers of a network that was prepared before."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from quantenv.core.channel_groups import Channels, split_layers
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.graph.layers import describe_plain
from quantenv.graph.naming import name_of
from quantenv.graph.plain_network import plain_network
from quantenv.graph.sites import Site, find_sites, keep_exact
from quantenv.graph.tracing import fold_linear_norms, trace
from quantenv.graph.verification import check_trace, first_not_finite
from quantenv.quantization.addends import fitted
from quantenv.quantization.calibration import LINEAR, Calibration, check_grouping, folded_weight
from quantenv.quantization.checked_passes import absorb_checked, equalise_checked
from quantenv.quantization.formats import Grid, activation_bounds
from quantenv.quantization.prepared import PreparedNetwork
from quantenv.quantization.ranges import BITS, MAX_SAMPLES, activation_grids, spread
from quantenv.quantization.schemes import Scheme
from quantenv.quantization.verification import check_rewritten

CALIBRATION_BATCH = 64


def calibrate(
    network: nn.Module, inputs: torch.Tensor, scheme: Scheme = LINEAR, channels: Channels | None = None
) -> Calibration:
    """Folds a network and finds the grids of all its weights and sites for 1-8 bits.

    Args:
        network: Float network; not changed.
        inputs: Calibration inputs, shape (N, ...).
        scheme: How weights are rounded, and which optional steps are taken.
        channels: Channel groups of its layers; by default all are whole.

    Returns:
        The calibration.

    Raises:
        UnsupportedLayerError: If a layer cannot be quantized, the network cannot be traced, or its trace computes
            something else, or so does what is rewritten for quantization, before anything is rounded.
        QuantenvError: If the network puts out NaN or infinity on the calibration inputs, or a layer has channel groups
            that are no partition, or that the scheme cannot have.
    """
    check_grouping(scheme, channels)
    folded = _fold(network, inputs, scheme, checked=True)
    graph, sites = folded.graph, folded.sites
    recorder = _SiteRecorder(graph, {site.node for site in sites}, len(inputs))
    with torch.no_grad():
        for batch in inputs.split(CALIBRATION_BATCH):
            outputs = recorder.run_batch(batch)
            if recorder.not_finite is not None:
                raise QuantenvError(
                    f"{name_of(recorder.not_finite, graph)} puts out NaN or infinity on the calibration inputs, which "
                    "no grid holds: check its weights, the inputs' normalisation, and divisions by zero."
                )
            if not outputs.isfinite().all():
                raise QuantenvError(
                    f"{folded.name} puts out NaN or infinity on the calibration inputs"
                    f"{first_not_finite(graph, batch)}; check its weights and the inputs' normalisation."
                )
    grids = {
        site.node: activation_grids(torch.cat(recorder.samples[site.node]), torch.cat(recorder.extremes[site.node]))
        for site in sites
    }
    calibration = Calibration(
        graph=graph,
        layers=split_layers(folded.layers, channels or {}),
        sites=sites,
        site_grids=fitted(graph, sites, grids),
        inputs=inputs,
        scheme=scheme,
        gains=folded.gains,
    )
    check_rewritten(calibration)
    return calibration


def restore(
    network: nn.Module,
    inputs: torch.Tensor,
    prepared: PreparedNetwork,
    scheme: Scheme = LINEAR,
    channels: Channels | None = None,
) -> Calibration:
    """Folds a network and takes all numbers from what was prepared of it; nothing is measured or checked again.

    Args:
        network: The float network that was prepared; not changed.
        inputs: The calibration inputs that it was prepared on, shape (N, ...).
        prepared: The numbers.
        scheme: The scheme that it was prepared under.
        channels: Channel groups of its layers; by default all are whole.

    Returns:
        The calibration.

    Raises:
        QuantenvError: If the numbers are of another network, or a layer has channel groups that are no partition, or
            that the scheme cannot have.
        UnsupportedLayerError: If a layer cannot be quantized, or the network cannot be traced.
    """
    check_grouping(scheme, channels)
    folded = _fold(network, inputs, scheme, checked=False)
    shapes = {layer.name: folded_weight(folded.graph.get_submodule(layer.name)).shape for layer in folded.layers}
    prepared.check_fits(shapes, [site.node for site in folded.sites])
    return Calibration(
        graph=folded.graph,
        layers=split_layers(folded.layers, channels or {}),
        sites=folded.sites,
        site_grids=prepared.site_grids,
        inputs=inputs,
        scheme=scheme,
        gains=prepared.gains,
        prepared=prepared,
    )


def unmeasured(network: nn.Module, example: torch.Tensor) -> Calibration:
    """Returns a calibration for its structure alone: every grid has a scale of 1, and no weights have any.

    Args:
        network: Float network; not changed.
        example: An input, shape (1, ...).

    Raises:
        UnsupportedLayerError: If a layer cannot be quantized, or the network cannot be traced.
    """
    folded = _fold(network, example, LINEAR, checked=False)
    grids = {bits: Grid(bits, torch.tensor(1.0), *activation_bounds(bits, 1)) for bits in BITS}
    site_grids = {site.node: grids for site in folded.sites}
    calibration = Calibration(folded.graph, folded.layers, folded.sites, site_grids, example)
    calibration.__dict__["linear_grids"] = {layer.name: {} for layer in folded.layers}  # which would be searched for
    return calibration


@dataclass(frozen=True)
class _Folded:
    """A network as it is quantized, before anything is measured on it."""

    name: str
    graph: fx.GraphModule
    layers: tuple[LayerSpec, ...]
    sites: tuple[Site, ...]
    gains: dict[str, torch.Tensor]


def _fold(network: nn.Module, inputs: torch.Tensor, scheme: Scheme, checked: bool) -> _Folded:
    """Traces and folds a network, takes the scheme's steps before measuring, and finds its sites.

    Args:
        network: The network; not changed.
        inputs: Calibration inputs, (N, ...).
        scheme: The scheme.
        checked: Whether to see that the trace computes what the network does, on all inputs.
    """
    network = plain_network(network, inputs)
    layers = describe_plain(network, inputs)
    graph = trace(network)
    fold_linear_norms(graph, inputs[:1])
    _check_folded(graph)
    if checked:
        training = network.training
        check_trace(network.eval(), graph, inputs, CALIBRATION_BATCH)
        network.train(training)
    gains = {
        layer.name: _folded_gain(network, graph, layer.name)
        for layer in layers
        if _folding_changed(network, graph, layer.name)
    }
    if scheme.equalisation:
        equalise_checked(graph, inputs)
    if scheme.absorption:
        absorb_checked(graph, [layer.name for layer in layers], inputs)
    keep_exact(graph, inputs[:1])
    return _Folded(type(network).__name__, graph, layers, find_sites(graph, inputs[:1]), gains)


def _check_folded(graph: fx.GraphModule) -> None:
    """Refuses statistics of batch norms that are no numbers, which a ReLU behind may hide."""
    for name, value in graph.named_parameters():
        if not value.isfinite().all():
            layer = name.rpartition(".")[0]
            raise QuantenvError(
                f"{type(graph.get_submodule(layer)).__name__} {layer!r} has NaN or infinity in its weights once its "
                "batch norm is folded in: look at that norm's running mean and variance. Load a sound checkpoint."
            )


def _folding_changed(network: nn.Module, graph: fx.GraphModule, name: str) -> bool:
    """Whether a layer's parameters are others than in the network: a batch norm was folded into it."""
    before, after = (_parameters(module.get_submodule(name)) for module in (network, graph))
    return len(before) != len(after) or any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def _parameters(layer: nn.Module) -> list[torch.Tensor]:
    """Returns a layer's weights, and its bias if it has one."""
    bias = layer.bias
    return [folded_weight(layer), *([bias] if isinstance(bias, torch.Tensor) else [])]


def _folded_gain(network: nn.Module, graph: fx.GraphModule, name: str) -> torch.Tensor:
    """Returns what folding multiplied the norm of each channel's weights by, (O,)."""
    before, after = (
        folded_weight(each.get_submodule(name)).detach().flatten(1).norm(dim=1) for each in (network, graph)
    )
    ratio = after / before
    return torch.where((before > 0) & (after > 0), ratio, 1.0)


class _SiteRecorder(fx.Interpreter):
    """Runs the float graph and keeps samples spread over all values, and the extremes, of every site."""

    def __init__(self, graph: fx.GraphModule, nodes: set[str], inputs: int) -> None:
        super().__init__(graph)
        self.inputs = inputs
        """How many inputs it will run on, in batches."""
        self._part = range(0)
        self.not_finite: fx.Node | None = None
        """The first site that holds NaN or infinity. (What is raised while a graph runs, torch.fx adds to.)"""
        self.samples: dict[str, list[torch.Tensor]] = {node: [] for node in nodes}
        self.extremes: dict[str, list[torch.Tensor]] = {node: [] for node in nodes}

    def run_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Runs on the next inputs."""
        self._part = range(self._part.stop, self._part.stop + len(batch))
        outputs: torch.Tensor = self.run(batch)
        return outputs

    def run_node(self, n: fx.Node) -> torch.Tensor:
        value = super().run_node(n)
        if n.name in self.samples:
            flat = value.flatten()
            if self.not_finite is None and not flat.isfinite().all():
                self.not_finite = n
            self.samples[n.name].append(spread(flat, MAX_SAMPLES, self._part, self.inputs))
            self.extremes[n.name].append(torch.stack(flat.aminmax()))
        return value
