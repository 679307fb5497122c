"""What is measured on a network once, before any allocation: folded weights, ranges, codebooks, statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import fx, nn

from quantenv.core.allocation import Allocation
from quantenv.core.channel_groups import Channels, channels_of, parts_of, whole
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.core.locks import PREPARING
from quantenv.graph.ops import canonical_weight
from quantenv.graph.sites import Site
from quantenv.quantization.adaround import nearest_codes
from quantenv.quantization.corrections import bias_correction, mean_inputs, output_moments
from quantenv.quantization.formats import Codebook, Grid, GroupedGrid, Rounding, WeightRounding
from quantenv.quantization.kmeans import codebooks
from quantenv.quantization.learned_rounding import LEARNED_BITS, LearnedRounding
from quantenv.quantization.prepared import PreparedNetwork
from quantenv.quantization.ranges import BITS, weight_grids
from quantenv.quantization.schemes import Scheme

#: Calibration inputs that batch norms are estimated on again: the first ones.
REESTIMATED_ON = 128
LINEAR = Scheme()
#: Bits of a layer's weights: of all of them, or of each of its channel groups where they differ.
WeightBits = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
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
    prepared: PreparedNetwork | None = None
    """Where its numbers come from; None if they are measured here."""

    @cached_property
    def content_hash(self) -> str:
        """Hash of all numbers that its evaluations depend on; of one that was measured here, all are made for it."""
        return (self.prepared or prepare(self)).content_hash

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
        if self.prepared is not None and self.scheme.weights == "linear":
            return self.prepared.weight_grids
        return {each.name: weight_grids(folded_weight(self.graph.get_submodule(each.name))) for each in self.modules}

    @cached_property
    def codebooks(self) -> dict[str, dict[int, Codebook]]:
        """Codebooks of the weights, by layer name and bits; fitted once."""
        if self.prepared is not None and self.scheme.weights == "k-means":
            return self.prepared.codebooks
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
        if self.prepared is not None:
            return self.prepared.reestimated
        if not self.scheme.batch_norm or not self.gains:
            return {}
        with PREPARING:
            return output_moments(self.graph, self.normalised, self.inputs[:REESTIMATED_ON])

    @cached_property
    def learned_rounding(self) -> LearnedRounding:
        """How the weights are rounded, where the scheme learns it."""
        return LearnedRounding(self)

    def codes(self, layer: str, bits: int) -> torch.Tensor:
        """Returns what a layer's weights are under the scheme: whole numbers of their grid, or indices of a codebook.

        Args:
            layer: Its name.
            bits: Its weight bits.

        Returns:
            Of a grid int8, of a codebook uint8, the shape of the weights: to nearest, or as the scheme learns.
        """
        if self.prepared is not None:
            return self.prepared.codes(layer, bits)
        if self.scheme.learned and bits in LEARNED_BITS:
            return self.learned_rounding.codes(layer, bits)
        weight, rounding = folded_weight(self.graph.get_submodule(layer)).detach(), self.weight_grids[layer][bits]
        if isinstance(rounding, Codebook):
            return rounding.indices(weight).to(torch.uint8)
        return nearest_codes(weight, rounding).to(torch.int8)

    def rounded(self, layer: str, bits: WeightBits) -> torch.Tensor:
        """Returns a layer's weights under the scheme: `codes` times scales, or the values that they stand for.

        Args:
            layer: Its name.
            bits: Its weight bits, or those of each of its channel groups.
        """
        weight = folded_weight(self.graph.get_submodule(layer)).detach()
        parts = [
            (channels, self._rounded(weight, layer, each)[channels]) for channels, each in self._by_group(layer, bits)
        ]
        return _joined(torch.empty_like(weight), parts)

    def _rounded(self, weight: torch.Tensor, layer: str, bits: int) -> torch.Tensor:
        codes, rounding = self.codes(layer, bits), self.weight_grids[layer][bits]
        numbers = rounding.values[codes.long()] if isinstance(rounding, Codebook) else codes
        return torch.empty_like(weight).copy_(numbers).mul_(rounding.scale)

    def bias(self, layer: str, bits: WeightBits) -> torch.Tensor | None:
        """Returns a layer's bias under weights of some bits, corrected if the scheme says so.

        Args:
            layer: Its name.
            bits: Its weight bits, or those of each of its channel groups, each of which has that of its own bits.
        """
        parts = [(channels, self._bias(layer, each)) for channels, each in self._by_group(layer, bits)]
        given = [(channels, bias[channels]) for channels, bias in parts if bias is not None]
        return _joined(torch.empty_like(parts[0][1]), given) if parts[0][1] is not None else None

    def _bias(self, layer: str, bits: int) -> torch.Tensor | None:
        if self.prepared is not None:
            return self.prepared.bias(layer, bits)
        return self.bias_under(layer, self.rounded(layer, bits))

    def _by_group(self, layer: str, bits: WeightBits) -> list[tuple[torch.Tensor | slice, int]]:
        """Returns channels and their bits."""
        if isinstance(bits, int) or len(set(bits)) == 1:
            return [(slice(None), bits if isinstance(bits, int) else bits[0])]
        return list(zip(self.channels[layer], bits, strict=True))

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


def prepare(calibration: Calibration) -> PreparedNetwork:
    """Returns all numbers that a calibration's evaluations depend on, of every layer at all bits.

    What is learned is learned now.
    """
    names = [layer.name for layer in calibration.modules]
    biases = {name: [calibration.bias(name, bits) for bits in BITS] for name in names}
    return PreparedNetwork.of(
        codes={name: [calibration.codes(name, bits) for bits in BITS] for name in names},
        rounding={name: [calibration.weight_grids[name][bits] for bits in BITS] for name in names},
        biases={name: [each for each in of_bits if each is not None] for name, of_bits in biases.items()},
        reestimated=calibration.reestimated,
        gains=calibration.gains,
        sites={site.node: [calibration.site_grids[site.node][bits] for bits in BITS] for site in calibration.sites},
    )


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


def _joined(whole: torch.Tensor, parts: Sequence[tuple[torch.Tensor | slice, torch.Tensor]]) -> torch.Tensor:
    """Puts together what has the channels of a layer, in place."""
    for channels, part in parts:
        whole[channels] = part
    return whole


def stored_bits(wanted: list[int], shared: bool) -> int:
    """Bits of a site: the most any reading layer wants, and 8 if something else reads it too."""
    return max([*wanted, 8] if shared else wanted)


def folded_weight(layer: nn.Module) -> torch.Tensor:
    """Returns a layer's weights, (O, I / G, ...), channels-last if they are of images."""
    weight = canonical_weight(layer)
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
