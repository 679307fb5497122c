"""Reading device descriptions: strictly, so that a slip in a YAML file is one clear sentence.

A device file is a mapping with `name`, `description`, `weight_bits`, `activation_bits` and, where the device defines
them, `latency` and `energy`: each a mapping with `model` and that model's constants. Every constant is written
``{value: ..., source: "where it comes from"}``; units are in its name. See the shipped files for examples.
"""

import importlib.resources
import math
import os
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import yaml

from quantenv.allocation import MAX_BITS
from quantenv.errors import QuantenvError, unknown_name
from quantenv.hardware.devices.description import Device, check_bits
from quantenv.hardware.energy import AnalyticEnergy
from quantenv.hardware.latency import LinearLatency, RooflineLatency
from quantenv.hardware.lookup import LookupTable

SUFFIXES = (".yaml", ".yml")


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
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise QuantenvError(f"Cannot read device file {path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise QuantenvError(f"Device file {path} is not UTF-8 text: {error.reason}.") from error
        return _parse(text, path)
    if device not in device_names():
        raise unknown_name("device", device, device_names())
    entry = _folder() / f"{device}.yaml"
    return _parse(entry.read_text(encoding="utf-8"), Path(entry.name))


def _folder() -> Any:
    return importlib.resources.files(__package__)


def _parse(text: str, path: Path) -> Device:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise QuantenvError(f"Device file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    sources: dict[str, str] = {}
    root = _Section(content, "", path, sources)
    root.check_keys({"name", "description", "weight_bits", "activation_bits"}, {"latency", "energy"})
    return Device(
        name=root.text("name"),
        description=root.text("description"),
        weight_bits=root.constant("weight_bits", _bits),
        activation_bits=root.constant("activation_bits", _bits),
        latency=root.model("latency", LATENCY_MODELS),
        energy=root.model("energy", ENERGY_MODELS),
        sources=sources,
    )


class _Section:
    """One mapping of a device file, which knows where it stands so that errors can say it."""

    def __init__(self, content: Any, where: str, path: Path, sources: dict[str, str]) -> None:
        if not isinstance(content, dict):
            what = f"{where!r}" if where else "it"
            raise QuantenvError(f"Device file {path}: {what} is {content!r}; expected a mapping of names to values.")
        self._content, self._where, self._path, self._sources = content, where, path, sources

    def check_keys(self, required: Set[str], optional: Set[str] = frozenset()) -> None:
        for key in self._content:
            if key not in required | optional:
                raise self.error(str(unknown_name("key", key, required | optional)))
        for key in sorted(required):
            if key not in self._content:
                raise self.error(f"{key!r} is missing; expected keys: {', '.join(sorted(required))}.")

    def text(self, key: str) -> str:
        value = self._content[key]
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key!r} is {value!r}; expected text.")
        return " ".join(value.split())

    def constant(self, key: str, read: Callable[[Any, str, Path], Any]) -> Any:
        name = f"{self._where}.{key}" if self._where else key
        section = _Section(self._content[key], name, self._path, self._sources)
        section.check_keys({"value", "source"})
        self._sources[name] = section.text("source")
        try:
            return read(section._content["value"], name, self._path)
        except QuantenvError as error:
            raise QuantenvError(f"Device file {self._path}: {error}") from error

    def model(self, key: str, models: "Mapping[str, Model]") -> Any:
        if key not in self._content:
            return None
        section = _Section(self._content[key], key, self._path, self._sources)
        if "model" not in section._content:
            raise section.error(f"'model' is missing; expected one of {', '.join(sorted(models))}.")
        name = section._content["model"]
        if not isinstance(name, str) or name not in models:
            raise section.error(str(unknown_name(f"model of {key}", name, models)))
        make, readers = models[name]
        section.check_keys({"model", *readers})
        return make(**{constant: section.constant(constant, read) for constant, read in readers.items()})

    def error(self, sentence: str) -> QuantenvError:
        where = f", section {self._where!r}" if self._where else ""
        return QuantenvError(f"Device file {self._path}{where}: {sentence}")


def _bits(value: Any, name: str, path: Path) -> tuple[int, ...]:
    return check_bits(f"{name!r}", value)


def _native_bits(value: Any, name: str, path: Path) -> tuple[int, ...]:
    bits = check_bits(f"{name!r}", value)
    if bits[-1] != MAX_BITS:
        raise QuantenvError(
            f"{name!r} are {list(bits)}; they must end in {MAX_BITS}, so that every width can round up."
        )
    return bits


def _positive(value: Any, name: str, path: Path) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        hint = " YAML reads 1e-9 as text: write 1.0e-9." if isinstance(value, str) else ""
        raise QuantenvError(f"{name!r} is {value!r}; expected a positive number.{hint}")
    return float(value)


def _fraction(value: Any, name: str, path: Path) -> float:
    number = _positive(value, name, path)
    if number > 1:
        raise QuantenvError(f"{name!r} is {value!r}; expected a number in (0, 1].")
    return number


def _by_width(value: Any, name: str, path: Path) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or not value or not all(type(bits) is int and bits > 0 for bits in value):
        raise QuantenvError(f"{name!r} is {value!r}; expected a mapping of bits to a number, such as {{8: 2.0e-13}}.")
    return tuple((bits, _positive(value[bits], f"{name}[{bits}]", path)) for bits in sorted(value))


def _file(value: Any, name: str, path: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise QuantenvError(f"{name!r} is {value!r}; expected the path of a .npy file.")
    return path.parent / value


#: What makes a model, and how each of its constants is read.
Model = tuple[Callable[..., Any], Mapping[str, Callable[[Any, str, Path], Any]]]

_LOOKUP: Model = (LookupTable, {"file": _file, "scale": _positive})

LATENCY_MODELS: Mapping[str, Model] = {
    "linear": (
        LinearLatency,
        {"seconds_per_byte": _positive, "seconds_per_mac": _positive, "relative_time_4bit": _fraction},
    ),
    "roofline": (
        RooflineLatency,
        {
            "bytes_per_second": _positive,
            "macs_per_second": _positive,
            "native_weight_bits": _native_bits,
            "native_activation_bits": _native_bits,
        },
    ),
    "lookup": _LOOKUP,
}

ENERGY_MODELS: Mapping[str, Model] = {
    "analytic": (AnalyticEnergy, {"joules_per_byte": _positive, "joules_per_mac": _by_width}),
    "lookup": _LOOKUP,
}
