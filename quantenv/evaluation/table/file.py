"""The file of an evaluation table: one compressed npz, a JSON description beside arrays, read without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from quantenv.core.activations import Activations, Product, StoredTensor
from quantenv.core.archives import open_npz
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_atomically
from quantenv.core.layers import Kind, LayerSpec
from quantenv.core.reading import JSON_LIMIT, Schema, fit, parse_json
from quantenv.evaluation.base import Evaluation

#: 2: with the stored tensors and products, which costs follow. 3: losses are whole micro-nats, not float32.
FORMAT = "quantenv-table-3"
#: Entry that holds the description: JSON as UTF-8, in a uint8 array.
METADATA = "metadata"
#: In front of the names of the splits' and the weights' arrays.
CORRECT, LOSS, WEIGHTS = "correct_", "loss_", "weights_"
#: Micro-nats of a nat: what losses are rounded to.
MICRO = 1_000_000
#: Largest mean loss that a table can hold, nats.
MOST_LOSS = (2**32 - 1) / MICRO
#: Rows that a table can hold at most: all of them are kept in memory.
MOST_ROWS = 1 << 22
#: A float network of up to this many bytes goes into its table.
MOST_WEIGHT_BYTES = 1 << 16
#: No layer of any network has more weights, channels or operations; their sums are still exact in float64.
_MOST = 1 << 48

Size = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
#: A value by spatial dimension.
Spatial = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=3)]


class _Layer(Schema, frozen=True):
    """The fields of `LayerSpec`, in range."""

    name: Text
    kind: Kind
    in_channels: Size
    out_channels: Size
    kernel_size: Spatial
    stride: Spatial
    groups: Size
    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
    output_shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
    params: Size
    bias_params: Size
    macs: Size


class _Tensor(Schema, frozen=True):
    """The fields of `StoredTensor`, in range."""

    name: Text
    elements: Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
    layers: Annotated[tuple[Text, ...], msgspec.Meta(max_length=10_000)]
    shared: bool
    reads: Size
    written: bool
    charged_to: Text
    first: Size
    last: Size


class _Product(Schema, frozen=True):
    """The fields of `Product`, in range."""

    name: Text
    macs: Size
    charged_to: Text


class _Evaluation(Schema, frozen=True):
    """The fields of `Evaluation`, in range."""

    correct: Size
    samples: Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
    loss: Annotated[float, msgspec.Meta(ge=0)]


class Description(Schema, frozen=True):
    """A table without its arrays."""

    format: Literal["quantenv-table-3"]
    hash: Annotated[str, msgspec.Meta(max_length=100)]
    name: Text
    task: Text
    task_identity: Text
    scheme: Text
    evaluator_identity: Text
    layers: Annotated[tuple[_Layer, ...], msgspec.Meta(min_length=1, max_length=10_000)]
    tensors: Annotated[tuple[_Tensor, ...], msgspec.Meta(min_length=1, max_length=100_000)]
    products: Annotated[tuple[_Product, ...], msgspec.Meta(max_length=100_000)]
    groups: Annotated[tuple[tuple[str, ...], ...], msgspec.Meta(min_length=1, max_length=10_000)]
    bits: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=8)]
    activation_bits: int
    reference: Annotated[dict[Text, _Evaluation], msgspec.Meta(min_length=1, max_length=8)]
    provenance: dict[str, Any]


def to_micronats(losses: np.ndarray) -> np.ndarray:
    """Rounds losses to whole micro-nats.

    Args:
        losses: Nats, 0 to `MOST_LOSS`, float64 (N,).

    Returns:
        Micro-nats, uint32 (N,).
    """
    return np.rint(losses * MICRO).astype("<u4")


def from_micronats(micronats: np.ndarray) -> np.ndarray:
    """Returns the losses in nats, float64 (N,): of each decimal fraction of six digits the nearest float64."""
    return micronats / MICRO


def write_npz(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a description and arrays, atomically. The same content always makes the same bytes."""
    text = json.dumps(metadata, sort_keys=True).encode()
    entries = {METADATA: np.frombuffer(text, dtype=np.uint8), **arrays}
    write_atomically(path, lambda file: np.savez_compressed(file, **entries))  # type: ignore[arg-type]


def read_table(path: Path) -> tuple[str, dict[str, Any]]:
    """Reads what `EvaluationTable.save` wrote; what the description speaks of is all that is unpacked.

    Returns:
        The hash that is recorded, and the arguments of `EvaluationTable`.

    Raises:
        QuantenvError: If the file is missing, truncated, damaged, or something else.
    """
    where = f"The evaluation table {path}"
    with open_npz(path, "evaluation table") as archive:
        text = archive.array(METADATA, JSON_LIMIT, "u")
        about = fit(parse_json(text.tobytes(), where), Description, where)
        rows = len(about.bits) ** min(len(about.groups), 100)
        if rows > MOST_ROWS:
            raise QuantenvError(f"{where} is damaged: it speaks of more than {MOST_ROWS:,} allocations.")
        sizes = {"sensitivity": 8 * len(about.layers)}
        sizes |= {f"{kind}{split}": 4 * rows for split in about.reference for kind in (CORRECT, LOSS)}
        weights = [name for name in archive.names if name.startswith(WEIGHTS)]
        for name in sorted({*archive.names, *sizes} - {METADATA, *weights}):
            if name not in sizes:
                raise QuantenvError(f"{where} is damaged: it holds the unknown {name[:80]!r}.")
        arrays = {name: archive.array(name, size) for name, size in sizes.items()}
        for split in about.reference:
            if arrays[LOSS + split].dtype != np.uint32:
                raise QuantenvError(f"{where} is damaged: its {split[:80]} losses are no micro-nats, uint32.")
        left = MOST_WEIGHT_BYTES
        for name in weights:
            arrays[name] = archive.array(name, left, "biuf")
            left -= arrays[name].nbytes
    plain = ("name", "task", "task_identity", "scheme", "evaluator_identity", "bits", "activation_bits", "provenance")
    return about.hash, {
        **{field: getattr(about, field) for field in plain},
        "layers": tuple(LayerSpec(**msgspec.structs.asdict(layer)) for layer in about.layers),
        "activations": Activations(
            tuple(StoredTensor(**msgspec.structs.asdict(tensor)) for tensor in about.tensors),
            tuple(Product(**msgspec.structs.asdict(product)) for product in about.products),
        ),
        "groups": about.groups,
        "reference": {name: Evaluation(**msgspec.structs.asdict(value)) for name, value in about.reference.items()},
        "correct": {split: arrays[CORRECT + split] for split in about.reference},
        "loss": {split: from_micronats(arrays[LOSS + split]) for split in about.reference},
        "sensitivity": arrays["sensitivity"],
        "weights": {name.removeprefix(WEIGHTS): arrays[name] for name in weights},
    }
