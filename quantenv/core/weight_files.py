"""Files of tensors that others wrote, opened safely: nothing in them is executed, and damage is found, not loaded."""

import io
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import is_damaged

#: Larger files are refused before they are read.
MAX_BYTES = 4 << 30
#: Kinds of numbers that are converted to a network's own.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def open_tensors(path: str | Path, kind: str) -> Any:
    """Reads a file of `torch.save` or of safetensors.

    What torch writes is a zip archive with a checksum of each tensor, which torch itself does not look at: here it is.
    Torch's format from before 1.6 has none and is refused. Nor has safetensors, except for the files that quantenv
    writes; tensors are looked at by `check_tensor` as all others are.

    Args:
        path: The file.
        kind: What it is called in messages, such as ``"weights"``.

    Returns:
        What was saved: tensors by name, or plain Python values that hold them, on the CPU.

    Raises:
        QuantenvError: If the file is missing, too large, damaged or of another format, or holds anything but tensors
            and plain values.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if not size:
                raise _unreadable(path, kind, "the file is empty")
            if size > MAX_BYTES:
                raise _unreadable(path, kind, f"the file has {size:,} bytes, more than {MAX_BYTES:,}")
            if start[8:] == b"{":
                return _read_safetensors(file.read(), path, kind)
            if start[:1] == b"\x80":
                raise QuantenvError(
                    f"Cannot read the {kind} {path}: it is in torch's format from before 1.6, or a plain pickle, which "
                    "have no checksum to see damage by. Load it where it comes from and save it again with torch.save."
                )
            return _read_torch(file, size, path, kind)
    except OSError as error:
        raise _unreadable(path, kind, error.strerror or str(error)) from error


def check_tensor(where: str, value: Any, own: torch.Tensor) -> torch.Tensor:
    """Checks a tensor of a file against the one that it is to replace.

    Args:
        where: Names the file and the tensor, at the start of messages.
        value: What the file holds.
        own: The tensor that is there now. Infinities are allowed where it has the same, as masks do.

    Returns:
        The value with the type of `own`: half and double precision are converted.

    Raises:
        QuantenvError: If it is no dense tensor of this shape and kind of number, or holds NaN or infinity.
    """
    if not isinstance(value, torch.Tensor):
        raise QuantenvError(f"{where} is a {type(value).__name__}; expected a tensor.")
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
        nature = "quantized" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
        nature = f"on device {value.device.type}" if value.device.type != "cpu" else nature.removeprefix("torch.")
        raise QuantenvError(f"{where} is {nature}; expected a dense tensor of plain numbers on the CPU.")
    if value.shape != own.shape:
        raise QuantenvError(f"{where} is {tuple(value.shape)}, expected {tuple(own.shape)}.")
    alike = any(value.dtype in kind and own.dtype in kind for kind in (_FLOATS, _INTEGERS))
    if not alike and value.dtype != own.dtype:
        raise QuantenvError(f"{where} is {_name(value.dtype)}; expected {_name(own.dtype)}.")
    value = value.detach()
    converted = value.to(own.dtype)
    if own.dtype in _INTEGERS and not torch.equal(converted.to(value.dtype), value):
        raise QuantenvError(f"{where} holds numbers that do not fit {_name(own.dtype)}.")
    if not torch.isfinite(converted).all() and not torch.equal(converted, own.cpu()):
        raise QuantenvError(f"{where} holds NaN or infinity, or is too large for {_name(own.dtype)}.")
    return converted


def _read_torch(file: BinaryIO, size: int, path: Path, kind: str) -> Any:
    """Reads a file of `torch.save` from a copy of its archive, of which torch cannot take another view than zipfile."""
    damaged = _unreadable(path, kind, "the file is damaged or truncated, or is no file of torch.save")
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as sound:
            entries = archive.infolist()
            names = [Path(entry.filename).name for entry in entries]
            if "constants.pkl" in names:
                raise _unreadable(path, kind, "it is a TorchScript program, not tensors")
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > size or len(set(archive.namelist())) < len(names):
                raise damaged
            for entry in entries:
                sound.writestr(entry.filename, archive.read(entry))  # compared with its checksum
    except QuantenvError:
        raise
    except Exception as error:  # zipfile raises many kinds, according to the byte that is wrong
        if "Bad CRC-32" not in str(error):
            raise damaged from error
        raise _unreadable(
            path,
            kind,
            f"the content of {entry.filename!r} does not match its checksum, so the file is damaged, or was saved with "
            "torch.serialization.set_crc32_options(False)",
        ) from error
    if "data.pkl" not in names:
        raise damaged
    copy.seek(0)
    try:
        return torch.load(copy, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, according to what a file holds
        lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        reason = (lines or ["it holds what torch.load(weights_only=True) does not read"])[0].rstrip(".")
        raise _unreadable(path, kind, f"{reason[:200]}: it holds more than tensors and plain values") from error


def _read_safetensors(content: bytes, path: Path, kind: str) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # safetensors raises many kinds, according to the byte that is wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise _unreadable(path, kind, f"no sound file of safetensors ({reason[:120]})") from error
    if is_damaged(content, tensors):
        raise _unreadable(path, kind, "it does not match the checksum that quantenv wrote into it, so it is damaged")
    return tensors


def _unreadable(path: Path, kind: str, reason: str) -> QuantenvError:
    reason = "".join(character if character.isprintable() else "?" for character in reason)
    return QuantenvError(
        f"Cannot read the {kind} {path}: {reason}. Expected a file of torch.save(network.state_dict(), ...) or of "
        "safetensors."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
