"""What is measured on a network once, before any allocation: folded weights, ranges, codebooks, statistics."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from quantenv.allocation import Allocation
from quantenv.channel_groups import Channels, channels_of, parts_of, split_layers, whole
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec, describe
from quantenv.locks import PREPARING
from quantenv.plain import plain_network
from quantenv.quantize.calibrate import MAX_SAMPLES, activation_grids, spread, weight_grids
from quantenv.quantize.corrections import bias_correction, mean_inputs, output_moments
from quantenv.quantize.graph import Site, find_sites, keep_exact
from quantenv.quantize.kmeans import codebooks
from quantenv.quantize.learned_rounding import LEARNED_BITS, LearnedRounding
from quantenv.quantize.naming import name_of
from quantenv.quantize.quantizers import Codebook, Grid, GroupedGrid, Rounding, WeightRounding, quantize
from quantenv.quantize.schemes import Scheme, parse_scheme
from quantenv.quantize.tracing import fold_linear_norms, trace

if TYPE_CHECKING:
    from quantenv.tasks import Task

CALIBRATION_BATCH = 64
#: Calibration inputs that batch norms are estimated on again: the first ones.
REESTIMATED_ON = 128
LINEAR = Scheme()
#: Bits of a layer's weights: of all of them, or of each of its channel groups where they differ.
WeightBits = int | tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """A folded network with everything measured on it that quantizers start from."""

    graph: fx.GraphModule
    """The traced, folded float network."""
    layers: tuple[LayerSpec, ...]
    """Its quantizable layers, or the channel groups they are cut into, in execution order: what allocations cover."""
    sites: tuple[Site, ...]
    """Its stored tensors, in execution order."""
    site_grids: dict[str, dict[int, Grid]]
    """By site node and bits."""
    inputs: torch.Tensor
    """The calibration inputs."""
    scheme: Scheme = LINEAR
    """How weights are rounded, and which steps follow."""
    gains: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By layer that a batch norm was folded into: what folding multiplied the norm of each channel's weights by, (O,),
    positive (1 for channels of zeros)."""

    @property
    def normalised(self) -> tuple[str, ...]:
        """Names of the layers that batch norms were folded into."""
        return tuple(self.gains)

    @cached_property
    def modules(self) -> tuple[LayerSpec, ...]:
        """Its quantizable layers as the modules they are, each whole, in execution order."""
        return tuple(whole(self.layers[indices[0]]) for indices in parts_of(self.layers))

    @cached_property
    def indices(self) -> dict[str, tuple[int, ...]]:
        """Places in an allocation that a module's bits stand at, by its name: one, or one for each channel group."""
        return {layer.name: indices for layer, indices in zip(self.modules, parts_of(self.layers), strict=True)}

    @cached_property
    def channels(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Output channels of each of a module's channel groups, by its name; none if it is whole."""
        return {
            name: tuple(torch.tensor(channels_of(self.layers[index])) for index in indices) if len(indices) > 1 else ()
            for name, indices in self.indices.items()
        }

    def bits_of(self, allocation: Allocation) -> dict[str, tuple[tuple[int, ...], int]]:
        """Returns a module's weight bits, of each of its channel groups, and its activation bits, by its name."""
        weights, activations = allocation.weight_bits, allocation.activation_bits
        return {
            name: (tuple(weights[index] for index in indices), activations[indices[0]])
            for name, indices in self.indices.items()
        }

    @property
    def weight_grids(self) -> Mapping[str, Mapping[int, Rounding]]:
        """What the scheme rounds weights to, by layer name and bits."""
        return self.codebooks if self.scheme.weights == "k-means" else self.linear_grids

    @cached_property
    def linear_grids(self) -> dict[str, dict[int, Grid]]:
        """Grids of the weights, by layer name and bits; found once."""
        return {each.name: weight_grids(folded_weight(self.graph.get_submodule(each.name))) for each in self.modules}

    @cached_property
    def codebooks(self) -> dict[str, dict[int, Codebook]]:
        """Codebooks of the weights, by layer name and bits; fitted once."""
        return {each.name: codebooks(folded_weight(self.graph.get_submodule(each.name))) for each in self.modules}

    @cached_property
    def moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By layer: mean and variance, (O,) each, of what the float network's puts out on the calibration inputs."""
        with PREPARING:
            return output_moments(self.graph, [layer.name for layer in self.modules], self.inputs)

    @cached_property
    def mean_inputs(self) -> dict[str, torch.Tensor]:
        """By layer: what the float network's reads, averaged over the calibration inputs, (1, ...)."""
        with PREPARING:
            return mean_inputs(self.graph, [layer.name for layer in self.modules], self.inputs)

    @cached_property
    def reestimated(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By layer whose batch norm is estimated again: mean and variance, (O,) each, that its outputs are to have."""
        if not self.scheme.batch_norm or not self.gains:
            return {}
        with PREPARING:
            return output_moments(self.graph, self.normalised, self.inputs[:REESTIMATED_ON])

    @cached_property
    def learned_rounding(self) -> LearnedRounding:
        """How the weights are rounded, where the scheme learns it."""
        return LearnedRounding(self)

    def rounded(self, layer: str, bits: WeightBits) -> torch.Tensor:
        """Returns a layer's weights under the scheme: to nearest, or as it learns on first use of the bits.

        Args:
            layer: Its name.
            bits: Its weight bits, or those of each of its channel groups.
        """
        weight = folded_weight(self.graph.get_submodule(layer)).detach()
        if not isinstance(bits, int) and len(set(bits)) == 1:
            bits = bits[0]
        if not isinstance(bits, int):
            rounded = torch.empty_like(weight)
            for channels, each in zip(self.channels[layer], bits, strict=True):
                rounded[channels] = self.rounded(layer, each)[channels]
            return rounded
        grid = self.weight_grids[layer][bits]
        if not self.scheme.learned or bits not in LEARNED_BITS:
            return quantize(weight, grid)
        return torch.empty_like(weight).copy_(self.learned_rounding.codes(layer, bits)).mul_(grid.scale)

    def bias(self, layer: str, bits: WeightBits) -> torch.Tensor | None:
        """Returns a layer's bias under weights of some bits, corrected if the scheme says so.

        Args:
            layer: Its name.
            bits: Its weight bits, or those of each of its channel groups.
        """
        return self.bias_under(layer, self.rounded(layer, bits))

    def bias_under(self, layer: str, rounded: torch.Tensor) -> torch.Tensor | None:
        """Returns a layer's bias under weights that were rounded in any way, corrected if the scheme says so."""
        module = self.graph.get_submodule(layer)
        bias = module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        if not self.scheme.bias or layer in self.reestimated:  # which gives it another one
            return None if bias is None else bias.detach()
        correction = bias_correction(module, rounded, self.mean_inputs[layer])
        return correction if bias is None else bias.detach() + correction

    def site_of(self, layer: str) -> Site:
        """Returns the site a layer reads."""
        return next(site for site in self.sites if layer in site.layers)

    def stored_bits(self, site: Site, allocation: Allocation) -> int:
        """Bits a site is stored at: the most any of its readers wants."""
        bits = self.bits_of(allocation)
        return stored_bits([bits[name][1] for name in site.layers], site.shared)


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
    # These stand on calibrations.
    from quantenv.quantize.passes import absorb_checked, equalise_checked
    from quantenv.quantize.verification import check_rewritten, check_trace, first_not_finite

    check_grouping(scheme, channels)
    network = plain_network(network, inputs)
    layers = describe(network, inputs[:1])
    graph = trace(network)
    fold_linear_norms(graph, inputs[:1])
    _check_folded(graph)
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
    sites = find_sites(graph, inputs[:1])
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
                    f"{type(network).__name__} puts out NaN or infinity on the calibration inputs"
                    f"{first_not_finite(graph, batch)}; check its weights and the inputs' normalisation."
                )
    calibration = Calibration(
        graph=graph,
        layers=split_layers(layers, channels or {}),
        sites=sites,
        site_grids={
            site.node: activation_grids(torch.cat(recorder.samples[site.node]), torch.cat(recorder.extremes[site.node]))
            for site in sites
        },
        inputs=inputs,
        scheme=scheme,
        gains=gains,
    )
    check_rewritten(calibration)
    return calibration


def _check_folded(graph: fx.GraphModule) -> None:
    """Refuses statistics of batch norms that are no numbers, which a ReLU behind may hide."""
    for name, value in graph.named_parameters():
        if not value.isfinite().all():
            layer = name.rpartition(".")[0]
            raise QuantenvError(
                f"{type(graph.get_submodule(layer)).__name__} {layer!r} has NaN or infinity in its weights once its "
                "batch norm is folded in: look at that norm's running mean and variance. Load a sound checkpoint."
            )


def calibrate_task(task: "Task") -> Calibration:
    """Calibrates a task's network on its calibration split, once.

    Raises:
        QuantenvError: If the task asks for an unknown quantization scheme.
    """
    with PREPARING:
        return _calibrate_task(task)


@functools.lru_cache(maxsize=4)
def _calibrate_task(task: "Task") -> Calibration:
    from quantenv.quantize.input_rounding import warn_of_rounded_inputs  # which stands on calibrations

    split = task.splits["calibration"]
    calibration = calibrate(task.network, split.inputs, parse_scheme(task.scheme), task.channel_groups)
    warn_of_rounded_inputs(calibration, split.labels)
    return calibration


def check_grouping(scheme: Scheme, channels: Channels | None) -> None:
    """Checks that a scheme can give channel groups bits of their own.

    Raises:
        QuantenvError: If there are channel groups, and it cannot.
    """
    if channels and scheme.weights == "k-means":
        raise QuantenvError(
            "Scheme 'k-means' has one codebook for a layer, which its channel groups cannot share at different bits: "
            "use scheme 'linear', or leave the channel groups out."
        )


def grouped_rounding(
    grids: Mapping[int, Rounding], channels: Sequence[torch.Tensor], bits: Sequence[int]
) -> WeightRounding:
    """Returns what a layer's weights are rounded to.

    Args:
        grids: Of the whole layer, by bits.
        channels: Output channels of its channel groups; none if it is whole.
        bits: Bits of each group, or of the layer.

    Returns:
        The layer's own where all bits are equal; otherwise each group's channels of it.
    """
    if len(set(bits)) == 1:
        return grids[bits[0]]
    parts = []
    for group, each in zip(channels, bits, strict=True):
        grid = grids[each]
        assert isinstance(grid, Grid)  # codebooks were refused when the network was calibrated
        parts.append(Grid(each, grid.scale[group], grid.low, grid.high))
    return GroupedGrid(tuple(channels), tuple(parts))


def _folding_changed(network: nn.Module, graph: fx.GraphModule, name: str) -> bool:
    """Whether a layer's parameters are others than in the network: a batch norm was folded into it."""
    before, after = (dict(module.get_submodule(name).named_parameters()) for module in (network, graph))
    return before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before)


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


def stored_bits(wanted: list[int], shared: bool) -> int:
    """Bits of a site: the most any reading layer wants, and 8 if something else reads it too."""
    return max([*wanted, 8] if shared else wanted)


def folded_weight(layer: nn.Module) -> torch.Tensor:
    """Returns a layer's weights, channels-last if they are a convolution's."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
