"""Our own files of tensors: safetensors with a checksum of all that they hold, so that no damage is taken for sound.

A file is written aside and renamed, and nothing in it is ever run. Any reader of safetensors can open it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_atomically

if TYPE_CHECKING:
    import torch

#: The one entry of the file's metadata, JSON: of several, safetensors would write the order by chance.
ENTRY = "quantenv"
#: Kind of a file that holds a network's state dict and says nothing else.
WEIGHTS_FORMAT = "quantenv-weights-1"
#: Bytes of the header that names tensors and holds the metadata; a network of 10,000 tensors needs 1.5 MB.
MOST_HEADER = 1 << 24


def write_tensors(path: Path, kind: str, description: Mapping[str, Any], tensors: "Mapping[str, torch.Tensor]") -> None:
    """Writes tensors, atomically.

    Args:
        path: The file.
        kind: What the file is, with a version: ``quantenv-agent-2``.
        description: What else it says, JSON.
        tensors: Dense tensors by name; those that share memory are written apart.
    """
    import safetensors.torch

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(description, sort_keys=True)
    about = {"format": kind, "description": text, "checksum": _checksum(kind, text, own)}
    content = safetensors.torch.save(own, {ENTRY: json.dumps(about)})
    write_atomically(Path(path), lambda file: file.write(content))


def read_tensors(path: Path, kind: str, what: str, remedy: str) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """Reads what `write_tensors` wrote, and nothing else.

    Args:
        path: The file.
        kind: What it must be.
        what: The same in words, for messages: ``an agent file``.
        remedy: A sentence on what to do if the file is none or damaged.

    Returns:
        The description, and the tensors by name, on the CPU.

    Raises:
        QuantenvError: If the file is missing, something else, truncated, or not as it was written.
    """
    about, tensors = _parse(path, what, remedy)
    found = about.get("format")
    if found != kind:
        says = f" (it says {found[:60]!r})" if isinstance(found, str) else ""
        raise QuantenvError(f"{path} is not {what}: its format is not {kind!r}{says}. {remedy}")
    if not _is_as_written(about, tensors):
        raise QuantenvError(f"{path} is damaged: it does not match its checksum. {remedy}")
    return _object(about["description"]), tensors


def is_damaged(content: bytes, tensors: "Mapping[str, torch.Tensor]") -> bool:
    """Whether the content of a sound safetensors file says that it is ours and does not match its checksum.

    Args:
        content: The file.
        tensors: What safetensors reads from it.
    """
    about = _about(content)
    return bool(about) and not _is_as_written(about, tensors)


def _parse(path: Path, what: str, remedy: str) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """Takes a file apart; safetensors itself sees to it that every offset lies within the data."""
    import safetensors.torch

    if not Path(path).is_file():
        raise QuantenvError(f"There is no file {path}; expected the path of {what}.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise QuantenvError(f"Cannot read {path}: {error.strerror}.") from error
    if content[:2] == b"PK":
        raise QuantenvError(
            f"{path} is not {what} as quantenv keeps them now: files of torch.save, of earlier versions, are not read "
            f"any more. {remedy}"
        )
    damaged = QuantenvError(f"{path} is not {what}, or is damaged or truncated. {remedy}")
    if len(content) < 8 or _header_length(content) > MOST_HEADER:
        raise damaged
    try:
        return _about(content), safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError, RuntimeError) as error:
        raise damaged from error


def _header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def _about(content: bytes) -> dict[str, Any]:
    """Returns what a file says of itself; nothing if it is not ours."""
    metadata = _object(content[8 : 8 + min(_header_length(content), MOST_HEADER)]).get("__metadata__")
    return _object(metadata.get(ENTRY, "")) if isinstance(metadata, dict) else {}


def _object(text: object) -> dict[str, Any]:
    """Parses a JSON object, in which numbers may be infinite; what is none, or holds half characters, has no keys."""
    try:
        content = json.loads(text) if isinstance(text, str | bytes) else None
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_as_written(about: Mapping[str, Any], tensors: "Mapping[str, torch.Tensor]") -> bool:
    kind, description = about.get("format"), about.get("description")
    texts = isinstance(kind, str) and isinstance(description, str)
    return texts and about.get("checksum") == _checksum(str(kind), str(description), tensors)


def _checksum(kind: str, description: str, tensors: "Mapping[str, torch.Tensor]") -> str:
    """Returns the SHA-256 of everything in a file, each part after its length."""
    import torch

    parts: list[Any] = [kind.encode(), description.encode()]
    for name, tensor in sorted(tensors.items()):
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        parts += [name.encode(), str(tensor.dtype).encode(), str(tuple(tensor.shape)).encode(), content]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
