"""Allocation: the weight and activation bits of every quantizable layer, and its JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantenv.core.arguments import listed, plain, whole_number
from quantenv.core.channel_groups import SEPARATOR, channels_of
from quantenv.core.errors import AllocationError, QuantenvError, shown
from quantenv.core.files import content_hash, write_text
from quantenv.core.layers import LayerSpec
from quantenv.core.reading import Schema, parse_json, read_bytes
from quantenv.core.records import open_record, sealed

FORMAT = "quantenv-allocation-2"
MIN_BITS, MAX_BITS = 1, 8
_KNOWN = frozenset(range(MIN_BITS, MAX_BITS + 1))

Bits = Annotated[int, msgspec.Meta(ge=MIN_BITS, le=MAX_BITS)]
"""Bits in the schema of a file."""


class LayerEntry(Schema, frozen=True):
    """A layer, or channel group, of an allocation file."""

    name: str
    weight_bits: Bits
    activation_bits: Bits
    channels: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()


class AllocationFile(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """What an allocation file holds besides its checksum."""

    task: str
    scheme: str
    layers: Annotated[tuple[LayerEntry, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Allocation:
    """Bits of every quantizable layer of one network, in execution order.

    Raises:
        AllocationError: If the lengths differ, a name is repeated, or bits leave 1-8.
    """

    names: tuple[str, ...]
    """Module names of the layers: their identity."""
    weight_bits: tuple[int, ...]
    """Bits of each layer's weights, 1-8."""
    activation_bits: tuple[int, ...]
    """Bits of each layer's input activations, 1-8."""
    task: str = ""
    """Name of the task it was made for (informative)."""
    scheme: str = ""
    """Quantization scheme it was evaluated under (informative)."""
    channels: tuple[tuple[int, ...], ...] = ()
    """Output channels that each name stands for where it is a channel group, none where it is a whole layer; empty if
    all are whole layers. Channel groups of a layer have the same activation bits."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.weight_bits) == len(self.activation_bits):
            raise AllocationError(
                f"An allocation needs one weight and one activation bit-width per layer: got {len(self.names)} "
                f"names, {len(self.weight_bits)} weight and {len(self.activation_bits)} activation bit-widths."
            )
        if len(set(self.names)) != len(self.names):
            raise AllocationError("An allocation names a layer more than once.")
        if self.channels:
            self._check_groups()
        every = (*self.weight_bits, *self.activation_bits)
        if set(map(type, every)) <= {int} and _KNOWN.issuperset(every):
            return
        for name, *bits in zip(self.names, self.weight_bits, self.activation_bits, strict=True):
            if not all(type(b) is int and MIN_BITS <= b <= MAX_BITS for b in bits):
                raise AllocationError(
                    f"Layer {name!r} has bits {bits[0]!r}/{bits[1]!r}; "
                    f"expected whole numbers from {MIN_BITS} to {MAX_BITS}."
                )

    def _check_groups(self) -> None:
        if len(self.channels) != len(self.names):
            raise AllocationError(
                f"An allocation with channel groups needs the channels of each name, none for a whole layer: got "
                f"{len(self.channels)} for {len(self.names)} names."
            )
        activations: dict[str, int] = {}
        for name, channels, bits in zip(self.names, self.channels, self.activation_bits, strict=True):
            layer, separator, _ = name.rpartition(SEPARATOR)
            if bool(separator) != bool(channels) or not all(type(channel) is int for channel in channels):
                raise AllocationError(
                    f"{name!r} has the channels {list(channels)}: a channel group is called layer{SEPARATOR}number and "
                    "has its output channels, a whole layer has none."
                )
            if channels and activations.setdefault(layer, bits) != bits:
                raise AllocationError(
                    f"The channel groups of layer {layer!r} have {activations[layer]} and {bits} activation bits; they "
                    "read the same tensor, so give them the same."
                )

    @classmethod
    def make(
        cls,
        layers: Sequence[LayerSpec],
        weight_bits: int | Sequence[int],
        activation_bits: int | Sequence[int] = 8,
        task: str = "",
        scheme: str = "",
    ) -> "Allocation":
        """Makes an allocation for described layers; a single number means the same bits everywhere.

        Args:
            layers: The network's layers, as `quantenv.tasks.Task.layers`.
            weight_bits: One bit-width, or a list or array of one per layer: whole numbers from 1 to 8, also NumPy's.
            activation_bits: The same for activations.
            task: Task name to carry.
            scheme: Scheme name to carry.

        Returns:
            The allocation.

        Raises:
            AllocationError: If bits are anything else, or not one per layer.
        """
        if isinstance(layers, str) or not all(hasattr(layer, "name") for layer in layers):
            raise AllocationError("An allocation is made for a network's layers: give task.layers.")
        names = tuple(layer.name for layer in layers)
        weights, activations = _spread("weight", weight_bits, names), _spread("activation", activation_bits, names)
        return cls(names, weights, activations, task, scheme, channels_in(layers))

    @property
    def bits(self) -> tuple[tuple[int, int], ...]:
        """(weight bits, activation bits) of each layer."""
        return tuple(zip(self.weight_bits, self.activation_bits, strict=True))

    @property
    def hash(self) -> str:
        """Hash of names, bits and channel groups: equal for equal allocations of the same layers."""
        grouped = [self.channels] if self.channels else []
        return content_hash([json.dumps([self.names, self.weight_bits, self.activation_bits, *grouped])])

    @property
    def groups(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Channels of each channel group, by layer name: what `quantenv.tasks.Task.channel_groups` takes."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for name, channels in zip(self.names, self.channels, strict=bool(self.channels)):
            if channels:
                found.setdefault(name.rpartition(SEPARATOR)[0], []).append(channels)
        return {name: tuple(groups) for name, groups in found.items()}

    def check_fits(self, layers: Sequence[LayerSpec]) -> "Allocation":
        """Returns the allocation in the order of `layers`, or says which layers differ.

        Args:
            layers: The network's layers.

        Returns:
            The same bits, in the order of `layers`.

        Raises:
            AllocationError: If the layer names are not the same set, or stand for other channels.
        """
        expected = tuple([layer.name for layer in layers])
        channels = channels_in(layers)
        if expected == self.names and channels == self.channels:
            return self
        missing = [name for name in expected if name not in self.names]
        extra = [name for name in self.names if name not in expected]
        if missing or extra:
            parts = []
            if missing:
                parts.append(f"the network's {_list(missing)} have no bits")
            if extra:
                parts.append(f"{_list(extra)} are not in the network")
            made_for = f" It was made for task {self.task!r}." if self.task else ""
            raise AllocationError(f"The allocation does not fit this network: {'; '.join(parts)}.{made_for}")
        held = dict(zip(self.names, self.channels, strict=True)) if self.channels else dict.fromkeys(self.names, ())
        other = [name for name, wanted in zip(expected, channels, strict=bool(channels)) if held[name] != wanted]
        if other or (self.channels and not channels):
            raise AllocationError(
                f"The allocation's channel groups are not this network's: {_list(other or expected)} stand for other "
                "output channels. Group the network's channels as the allocation says."
            )
        by_name = dict(zip(self.names, self.bits, strict=True))
        weights, activations = zip(*(by_name[name] for name in expected), strict=True)
        return Allocation(expected, weights, activations, self.task, self.scheme, channels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON content: format, task, scheme, per layer name and bits, channels of a group; a checksum."""
        layers: list[dict[str, Any]] = [
            {"name": name, "weight_bits": weight, "activation_bits": activation}
            for name, weight, activation in zip(self.names, self.weight_bits, self.activation_bits, strict=True)
        ]
        for layer, channels in zip(layers, self.channels, strict=bool(self.channels)):
            if channels:
                layer["channels"] = list(channels)
        return sealed({"format": FORMAT, "task": self.task, "scheme": self.scheme, "layers": layers})

    @classmethod
    def from_dict(cls, content: Any, where: str = "The allocation") -> "Allocation":
        """Reads the content written by `to_dict`.

        Args:
            content: Plain data.
            where: What messages begin with.

        Raises:
            AllocationError: If a key is missing, unknown or of the wrong type, or the checksum, which covers all of the
                content, does not match.
        """
        file = open_record(content, AllocationFile, where, AllocationError)
        channels = tuple(layer.channels for layer in file.layers)
        try:
            return cls(
                names=tuple(layer.name for layer in file.layers),
                weight_bits=tuple(layer.weight_bits for layer in file.layers),
                activation_bits=tuple(layer.activation_bits for layer in file.layers),
                task=file.task,
                scheme=file.scheme,
                channels=channels if any(channels) else (),
            )
        except AllocationError as error:
            raise AllocationError(f"{where} is not sound: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the allocation as JSON, atomically."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Allocation":
        """Reads an allocation file.

        Raises:
            AllocationError: If the file is missing, is not JSON, is truncated or malformed, or does not match its
                checksum.
        """
        where = f"The allocation file {path}"
        content = parse_json(read_bytes(path, what="allocation file", error=AllocationError), where, AllocationError)
        return cls.from_dict(content, where)


def fitting(allocations: Sequence[Allocation], layers: Sequence[LayerSpec]) -> list[Allocation]:
    """Returns allocations in the order of a network's layers.

    Raises:
        AllocationError: If what is given is no sequence of allocations, or one is for other layers.
    """
    return [allocation.check_fits(layers) for allocation in several(allocations)]


def several(allocations: Sequence[Allocation]) -> Sequence[Allocation]:
    """Returns allocations; raises AllocationError if what is given is no sequence of them."""
    if isinstance(allocations, Allocation):
        raise AllocationError("Several allocations are evaluated at once: give a list, such as [allocation].")
    for allocation in allocations:
        if not isinstance(allocation, Allocation):
            raise AllocationError(
                f"{shown(allocation)} is no allocation; make one of bits: Allocation.make(layers, weight_bits, "
                "activation_bits)."
            )
    return allocations


def channels_in(layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """Returns `Allocation.channels` of layers: empty if all are whole."""
    channels = tuple(channels_of(layer) for layer in layers)
    return channels if any(channels) else ()


def _spread(kind: str, bits: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Returns one bit-width per layer of a number, or of a list or array with one number for each."""
    try:
        if isinstance(plain(bits), Real):
            return (whole_number(bits, f"A bit-width of all {kind}s", MIN_BITS, MAX_BITS),) * len(names)
        listing = listed(bits, f"{kind}_bits", "bit-widths, one for each layer")
        if len(listing) != len(names):
            raise AllocationError(
                f"{kind}_bits has {len(listing)} bit-widths, and the network {len(names)} layers: give one for each, "
                "or a single number for all."
            )
        pairs = zip(names, listing, strict=True)
        return tuple(whole_number(one, f"{kind}_bits of layer {name!r}", MIN_BITS, MAX_BITS) for name, one in pairs)
    except AllocationError:
        raise
    except QuantenvError as error:
        raise AllocationError(str(error)) from None


def _list(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"layer{'s' if len(names) > 1 else ''} {shown}{more}"
