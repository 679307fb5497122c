"""Reading device descriptions: strictly, so that a slip in a YAML file is one clear sentence.

A device file is a mapping with `name`, `description`, `weight_bits`, `activation_bits` and, where the device defines
them, `latency` and `energy`: each a mapping with `model` and that model's constants. Every constant is written
``{value: ..., source: "where it comes from"}``; units are in its name. See the shipped files for examples.
"""

import importlib.resources
import os
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from quantenv.core.allocation import MAX_BITS, Bits
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.reading import YAML_LIMIT, Schema, fit, parse_yaml, read_bytes
from quantenv.hardware.devices.description import Device, check_bits
from quantenv.hardware.energy import AnalyticEnergy
from quantenv.hardware.latency import LinearLatency, RooflineLatency
from quantenv.hardware.lookup import LookupTable

SUFFIXES = (".yaml", ".yml")

T = TypeVar("T")
Text = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
SomeBits = Annotated[tuple[Bits, ...], msgspec.Meta(min_length=1)]
ByWidth = Annotated[dict[Annotated[int, msgspec.Meta(ge=1)], Positive], msgspec.Meta(min_length=1)]


class Constant(Schema, Generic[T], frozen=True):
    """A value and where it comes from."""

    value: T
    source: Text


class LinearSection(Schema, frozen=True, tag_field="model", tag="linear"):
    """Constants of `LinearLatency`."""

    seconds_per_byte: Constant[Positive]
    seconds_per_mac: Constant[Positive]
    relative_time_4bit: Constant[Fraction]


class RooflineSection(Schema, frozen=True, tag_field="model", tag="roofline"):
    """Constants of `RooflineLatency`."""

    bytes_per_second: Constant[Positive]
    macs_per_second: Constant[Positive]
    native_weight_bits: Constant[SomeBits]
    native_activation_bits: Constant[SomeBits]


class AnalyticSection(Schema, frozen=True, tag_field="model", tag="analytic"):
    """Constants of `AnalyticEnergy`."""

    joules_per_byte: Constant[Positive]
    joules_per_mac: Constant[ByWidth]


class LookupSection(Schema, frozen=True, tag_field="model", tag="lookup"):
    """Constants of `LookupTable`."""

    file: Constant[Text]
    scale: Constant[Positive]


class DeviceFile(Schema, frozen=True):
    """What a device file holds."""

    name: Text
    description: Text
    weight_bits: Constant[SomeBits]
    activation_bits: Constant[SomeBits]
    latency: LinearSection | RooflineSection | LookupSection | msgspec.UnsetType = msgspec.UNSET
    energy: AnalyticSection | LookupSection | msgspec.UnsetType = msgspec.UNSET


def device_names() -> tuple[str, ...]:
    """Returns the names of the shipped devices, sorted."""
    return tuple(sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(SUFFIXES)))


def load_device(device: str | Path) -> Device:
    """Loads a device description.

    Args:
        device: Name of a shipped device, or the path of a YAML file (a ``Path``, or text that ends in ``.yaml`` or
            ``.yml``). Paths of look-up tables in it are relative to the file's folder.

    Returns:
        The device.

    Raises:
        QuantenvError: If the name is unknown, or the file cannot be read or is malformed.
    """
    if isinstance(device, os.PathLike) or str(device).endswith(SUFFIXES):
        path = Path(device)
        return _parse(read_bytes(path, what="device file", limit=YAML_LIMIT), path)
    if device not in device_names():
        raise unknown_name("device", device, device_names())
    entry = _folder() / f"{device}.yaml"
    return _parse(entry.read_bytes(), Path(entry.name))


def _folder() -> Any:
    return importlib.resources.files(__package__)


def _parse(data: bytes, path: Path) -> Device:
    where = f"The device file {path}"
    file = fit(parse_yaml(data, where), DeviceFile, where)
    sources: dict[str, str] = {}
    values: dict[str, dict[str, Any]] = {"": {}}
    for name, section in {"": file, "latency": file.latency, "energy": file.energy}.items():
        for field in getattr(section, "__struct_fields__", ()):
            constant = getattr(section, field)
            if isinstance(constant, Constant):
                values.setdefault(name, {})[field] = constant.value
                sources[f"{name}.{field}" if name else field] = _on_one_line(constant.source)
    for name in ("latency", "energy"):
        if "file" in values.get(name, {}):
            values[name]["file"] = path.parent / values[name]["file"]
    try:
        return Device(
            name=_on_one_line(file.name),
            description=_on_one_line(file.description),
            latency=_latency(file.latency, values.get("latency", {})),
            energy=_energy(file.energy, values.get("energy", {})),
            sources=sources,
            **values[""],
        )
    except QuantenvError as error:
        raise QuantenvError(f"{where} is not sound: {error}") from error


def _latency(section: object, values: dict[str, Any]) -> LinearLatency | RooflineLatency | LookupTable | None:
    if isinstance(section, RooflineSection):
        for name in ("native_weight_bits", "native_activation_bits"):
            if check_bits(f"latency.{name}", values[name])[-1] != MAX_BITS:
                raise QuantenvError(
                    f"latency.{name} are {list(values[name])}; they must end in {MAX_BITS}, so that every width can "
                    "round up."
                )
        return RooflineLatency(**values)
    if isinstance(section, LinearSection):
        return LinearLatency(**values)
    return LookupTable(**values) if isinstance(section, LookupSection) else None


def _energy(section: object, values: dict[str, Any]) -> AnalyticEnergy | LookupTable | None:
    if isinstance(section, AnalyticSection):
        widths = values["joules_per_mac"]
        return AnalyticEnergy(values["joules_per_byte"], tuple((bits, widths[bits]) for bits in sorted(widths)))
    return LookupTable(**values) if isinstance(section, LookupSection) else None


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
