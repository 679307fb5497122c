"""The prepared network: all that float arithmetic decides of a quantized network, as data with a content hash.

Weights of every bit option as whole numbers and scales, biases as the scheme corrects them, the grids of all stored
tensors, what re-estimated batch norms are to restore. From there on evaluating is exact arithmetic: machines that have
the same prepared network give the same numbers, and ones that prepared their own say so by another hash.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.reading import Schema, fit
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.graph.identity import tensor_digest
from quantenv.quantization.formats import Codebook, Grid, Rounding, weight_bounds

#: Counted up when files mean something else, or preparing the same network gives other numbers.
FORMAT = "quantenv-prepared-1"
REMEDY = "Make it again with `quantenv prepare`."
BITS = range(1, 9)
SITE_SCALE, SITE_BOUNDS = "sites/scale", "sites/bounds"

Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]


class Reference(Schema, frozen=True):
    """The float network's evaluation on a split."""

    correct: Count
    samples: Annotated[int, msgspec.Meta(ge=1)]
    loss: float
    """Mean cross-entropy in nats, rounded to 1e-6."""
    digest: Text = ""
    """Hash of the split: what was prepared of a network serves other splits, too, of which this says nothing."""


class About(Schema, frozen=True):
    """What a prepared network was made from, and what else was measured of it: no part of the content hash."""

    key: Text = ""
    """Hash of what it is made from: the network, its calibration inputs and the scheme."""
    task: Text = ""
    """Name of the task (informative)."""
    scheme: Text = ""
    """The task's scheme (informative)."""
    references: dict[str, Reference] = msgspec.field(default_factory=dict)
    """By split."""
    sensitivities: dict[str, dict[str, list[float]]] = msgspec.field(default_factory=dict)
    """Measurements by name, by the identity that fixes them; see `quantenv.sensitivity`."""
    notes: list[Text] = msgspec.field(default_factory=list)
    """What was to be said of the network when it was prepared."""
    made: dict[str, Text] = msgspec.field(default_factory=dict)
    """Versions and instructions that it was made with (informative)."""


class _Description(About, frozen=True):
    """What a file says beside its tensors."""

    content: Text = ""
    layers: list[str] = msgspec.field(default_factory=list)
    sites: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True, eq=False)
class PreparedNetwork:
    """The numbers of a quantized network. Layers are whole, whatever channel groups a task cuts them into."""

    layers: tuple[str, ...]
    """Names of its quantizable layers, in execution order."""
    sites: tuple[str, ...]
    """Nodes of its stored tensors, in execution order."""
    tensors: Mapping[str, torch.Tensor]
    """All numbers, by name. Of each layer with output channels O, under ``layers/<name>/``: ``codes`` int8
    (8, *weight), its weights as whole numbers at 1-8 bits, and ``scale`` (8, O); or ``indices`` uint8 (8, *weight),
    ``scale`` (O,) and ``values`` (510,), its codebooks one behind the other. ``bias`` (8, O) unless it has none;
    ``mean`` and ``variance`` (O,) if its batch norm is estimated again; ``gain`` (O,) if one was folded in. Of the
    sites ``sites/scale`` (S, 8) and ``sites/bounds`` int16 (S, 8, 2), lowest and highest whole number."""
    about: About = field(default_factory=About)
    """What it was made from, and what else is known."""

    @classmethod
    def of(
        cls,
        codes: Mapping[str, Sequence[torch.Tensor]],
        rounding: Mapping[str, Sequence[Rounding]],
        biases: Mapping[str, Sequence[torch.Tensor]],
        reestimated: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        gains: Mapping[str, torch.Tensor],
        sites: Mapping[str, Sequence[Grid]],
    ) -> "PreparedNetwork":
        """Puts numbers together.

        Args:
            codes: By layer and bits 1-8 its weights' whole numbers or indices, the shape of the weights.
            rounding: By layer and bits their grids or codebooks.
            biases: By layer and bits; empty where it has none.
            reestimated: By layer mean and variance, (O,) each.
            gains: By layer what folding multiplied its channels' weights by, (O,).
            sites: By node of a stored tensor and bits its grids.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, of_bits in codes.items():
            kind = "indices" if isinstance(rounding[name][0], Codebook) else "codes"
            tensors[name_of(name, kind)] = torch.stack(tuple(of_bits))
            if kind == "indices":
                books = [book for book in rounding[name] if isinstance(book, Codebook)]
                tensors[name_of(name, "scale")] = books[0].scale.flatten()
                tensors[name_of(name, "values")] = torch.cat([book.values for book in books])
            else:
                tensors[name_of(name, "scale")] = torch.stack([grid.scale.flatten() for grid in rounding[name]])
            if biases[name]:
                tensors[name_of(name, "bias")] = torch.stack(tuple(biases[name]))
            if name in reestimated:
                tensors[name_of(name, "mean")], tensors[name_of(name, "variance")] = reestimated[name]
            if name in gains:
                tensors[name_of(name, "gain")] = gains[name]
        tensors[SITE_SCALE] = torch.stack([torch.stack([grid.scale for grid in grids]) for grids in sites.values()])
        bounds = [[(grid.low, grid.high) for grid in grids] for grids in sites.values()]
        tensors[SITE_BOUNDS] = torch.tensor(bounds, dtype=torch.int16)
        # Copies: pieces of a training graph, or views of larger tensors, are not to stay alive in them.
        plain = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        return cls(tuple(codes), tuple(sites), plain)

    @cached_property
    def content_hash(self) -> str:
        """Hash of all numbers."""
        digests = (f"{name}: {tensor_digest(value)}" for name, value in sorted(self.tensors.items()))
        return content_hash([FORMAT, json.dumps([self.layers, self.sites]), *digests])

    @cached_property
    def site_grids(self) -> dict[str, dict[int, Grid]]:
        """By site node and bits."""
        scales, bounds = self.tensors[SITE_SCALE], self.tensors[SITE_BOUNDS].tolist()
        return {
            node: {bits: Grid(bits, scales[index, bits - 1], *bounds[index][bits - 1]) for bits in BITS}
            for index, node in enumerate(self.sites)
        }

    @cached_property
    def weight_grids(self) -> dict[str, dict[int, Grid]]:
        """By layer and bits, where weights lie on grids."""
        return {
            name: {
                bits: Grid(bits, self.tensors[name_of(name, "scale")][bits - 1].view(self._broadcast(codes)), *bounds)
                for bits, bounds in zip(BITS, map(weight_bounds, BITS), strict=True)
            }
            for name in self.layers
            if (codes := self.tensors.get(name_of(name, "codes"))) is not None
        }

    @cached_property
    def codebooks(self) -> dict[str, dict[int, Codebook]]:
        """By layer and bits, where weights are indices of codebooks."""
        found = {}
        for name in self.layers:
            if (indices := self.tensors.get(name_of(name, "indices"))) is not None:
                scale = self.tensors[name_of(name, "scale")].view(self._broadcast(indices))
                values = self.tensors[name_of(name, "values")].split([2**bits for bits in BITS])
                found[name] = {bits: Codebook(bits, scale, part) for bits, part in zip(BITS, values, strict=True)}
        return found

    @cached_property
    def reestimated(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By layer whose batch norm is estimated again: mean and variance, (O,) each, that its outputs are to have."""
        means = self._by_layer("mean")
        return {name: (mean, self.tensors[name_of(name, "variance")]) for name, mean in means.items()}

    @cached_property
    def gains(self) -> dict[str, torch.Tensor]:
        """By layer that a batch norm was folded into: see `quantenv.quantization.calibration.Calibration.gains`."""
        return self._by_layer("gain")

    def codes(self, layer: str, bits: int) -> torch.Tensor:
        """Returns a layer's weights as whole numbers, int8, or as indices, uint8."""
        found = self.tensors.get(name_of(layer, "codes"))
        return (self.tensors[name_of(layer, "indices")] if found is None else found)[bits - 1]

    def bias(self, layer: str, bits: int) -> torch.Tensor | None:
        """Returns a layer's bias under weights of some bits, (O,); None if it has none."""
        found = self.tensors.get(name_of(layer, "bias"))
        return None if found is None else found[bits - 1]

    def check_fits(self, shapes: Mapping[str, torch.Size], sites: Sequence[str]) -> None:
        """Checks that the numbers are of a network.

        Args:
            shapes: Of its layers' weights, by name.
            sites: Nodes of its stored tensors.

        Raises:
            QuantenvError: If they are of another one.
        """
        own = {name: self.codes(name, 8).shape for name in self.layers}
        odd = [name for name in (*own, *shapes) if own.get(name) != shapes.get(name)]
        odd += sorted(set(self.sites) ^ set(sites))
        if odd or list(own) != list(shapes) or self.sites != tuple(sites):
            what = f"{odd[0][:80]!r} differs" if odd else "the order of layers differs"
            raise QuantenvError(f"The prepared network is of another network: {what}. {REMEDY}")

    def _by_layer(self, kind: str) -> dict[str, torch.Tensor]:
        return {name: self.tensors[name_of(name, kind)] for name in self.layers if name_of(name, kind) in self.tensors}

    def _broadcast(self, codes: torch.Tensor) -> tuple[int, ...]:
        return (codes.shape[1],) + (1,) * (codes.dim() - 2)


def write_prepared(prepared: PreparedNetwork, path: Path) -> None:
    """Writes a prepared network as safetensors with a checksum, atomically."""
    names = {"content": prepared.content_hash, "layers": list(prepared.layers), "sites": list(prepared.sites)}
    write_tensors(path, FORMAT, msgspec.to_builtins(prepared.about) | names, prepared.tensors)


def read_prepared(path: Path) -> PreparedNetwork:
    """Reads a prepared network; nothing in the file is run.

    Raises:
        QuantenvError: If the file is missing, damaged, of another version, or holds what no prepared network has.
    """
    from quantenv.quantization.prepared_soundness import problems  # which says what is wrong of one

    description, tensors = read_tensors(path, FORMAT, "a prepared network", REMEDY)
    where = f"The prepared network {path}"
    said = fit(description, _Description, where)
    about = About(**{name: getattr(said, name) for name in About.__struct_fields__})
    prepared = PreparedNetwork(tuple(said.layers), tuple(said.sites), tensors, about)
    for problem in problems(prepared):
        raise QuantenvError(f"{where} is not sound: {problem}. {REMEDY}")
    if prepared.content_hash != said.content:
        raise QuantenvError(f"{where} is not sound: its numbers have another hash than it says. {REMEDY}")
    return prepared


def name_of(layer: str, kind: str) -> str:
    """Returns the name of a layer's numbers of some kind."""
    return f"layers/{layer}/{kind}"
