"""EvaluationTable: every allocation of a task, evaluated once and kept; looking one up replaces evaluating it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantenv.core.activations import Activations
from quantenv.core.allocation import MAX_BITS, MIN_BITS, Allocation
from quantenv.core.errors import AllocationError, QuantenvError, unknown_name
from quantenv.core.files import content_hash
from quantenv.core.layers import LayerSpec
from quantenv.core.ties import resolve_groups
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.file import (
    CORRECT,
    FORMAT,
    LOSS,
    MOST_LOSS,
    MOST_ROWS,
    MOST_WEIGHT_BYTES,
    WEIGHTS,
    from_micronats,
    read_table,
    to_micronats,
    write_npz,
)


@dataclass(frozen=True, eq=False)
class EvaluationTable:
    """Correct counts and losses of all allocations of groups of layers.

    Row r holds the allocation whose options are the digits of r in base ``len(bits)``, the first group's the most
    significant: NumPy's C order of an array of shape ``(len(bits),) * len(groups)``.

    Raises:
        QuantenvError: If the parts do not fit each other; the sentence names the part.
    """

    name: str
    """Name of the table, by which it is a task: ``digits_table``."""
    task: str
    """Name of the task that was enumerated: ``digits``."""
    task_identity: str
    """Content hash of its weights, splits and scheme."""
    scheme: str
    """Its quantization scheme."""
    evaluator_identity: str
    """Identity of the evaluator that computed the rows."""
    layers: tuple[LayerSpec, ...]
    """The quantizable layers, length L."""
    activations: Activations
    """The stored tensors and products of the network, which costs follow."""
    groups: tuple[tuple[str, ...], ...]
    """Names of the layers of each group, every layer in one; groups in the order of their first layer, length G."""
    bits: tuple[int, ...]
    """Weight bits on offer, ascending, length B."""
    activation_bits: int
    """Bits of all activations."""
    reference: Mapping[str, Evaluation]
    """The float network on each split; the number of samples is that of the rows, too."""
    correct: Mapping[str, np.ndarray]
    """Samples classified correctly, by split, uint16 or uint32 (B ** G,)."""
    loss: Mapping[str, np.ndarray]
    """Mean cross-entropy in nats, by split, float64 (B ** G,); each a whole number of micro-nats."""
    sensitivity: np.ndarray
    """Sensitivity of each layer, float64 (L,), as `quantenv.sensitivity.layer_sensitivity` measures it."""
    provenance: Mapping[str, Any]
    """How it was made, JSON: command, date, versions, source of the data."""
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """State dict of the float network where it is small, so that rows can be evaluated again anywhere; else empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups))
        object.__setattr__(self, "bits", tuple(self.bits))
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise QuantenvError("Two of a table's layers have the same name.")
        self.activations.check_fits(self.layers)
        if [tuple(self.layers[index].name for index in group) for group in self.members] != list(self.groups):
            raise QuantenvError(
                "A table's groups must name every layer once, in the network's order, groups by their first layer."
            )
        known = set(range(MIN_BITS, MAX_BITS + 1))
        if not self.bits or not {*self.bits, self.activation_bits} <= known or sorted(set(self.bits)) != [*self.bits]:
            raise QuantenvError(f"A table's bits are {self.bits}/{self.activation_bits}; expected 1-8, ascending.")
        if self.rows > MOST_ROWS:
            raise QuantenvError(f"A table holds at most {MOST_ROWS:,} allocations, not {self.rows:,}.")
        if not self.reference or not set(self.reference) == set(self.correct) == set(self.loss):
            raise QuantenvError("A table needs float reference, correct counts and losses of the same splits.")
        for split, reference in self.reference.items():
            self._check_split(split, reference)
        if self.sensitivity.shape != (len(self.layers),) or self.sensitivity.dtype != np.float64:
            raise QuantenvError(f"Sensitivities are {_kind(self.sensitivity)}; expected float64 ({len(self.layers)},).")
        if not np.isfinite(self.sensitivity).all() or not all(
            np.isfinite(array).all() for array in self.weights.values()
        ):
            raise QuantenvError("A table's sensitivities or weights hold NaN or infinity.")
        if sum(array.nbytes for array in self.weights.values()) > MOST_WEIGHT_BYTES:
            raise QuantenvError(f"A table holds the weights of a network of up to {MOST_WEIGHT_BYTES:,} bytes only.")
        for array in (*self.correct.values(), *self.loss.values(), self.sensitivity):
            array.setflags(write=False)

    def _check_split(self, split: str, reference: Evaluation) -> None:
        correct, loss = self.correct[split], self.loss[split]
        if correct.shape != (self.rows,) or correct.dtype not in (np.uint16, np.uint32):
            raise QuantenvError(f"{split} counts are {_kind(correct)}; expected uint16 or uint32 ({self.rows},).")
        if loss.shape != (self.rows,) or loss.dtype != np.float64:
            raise QuantenvError(f"{split} losses are {_kind(loss)}; expected float64 ({self.rows},).")
        if not (correct <= reference.samples).all() or not 0 <= reference.correct <= reference.samples:
            raise QuantenvError(
                f"The {split} split holds more correct predictions than its {reference.samples} samples."
            )
        if not ((loss >= 0) & (loss <= MOST_LOSS)).all() or not 0 <= reference.loss < math.inf:
            raise QuantenvError(f"The {split} split holds a loss that is negative, over {MOST_LOSS} nats or NaN.")
        if (from_micronats(to_micronats(loss)) != loss).any():
            raise QuantenvError(f"The {split} split holds a loss that is not rounded to 1e-6 nats.")

    @property
    def rows(self) -> int:
        """Number of allocations."""
        return len(self.bits) ** len(self.groups)

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices of each group."""
        return resolve_groups(self.groups, self.layers)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Rows by which the next option of each group is further on."""
        return tuple(len(self.bits) ** power for power in reversed(range(len(self.groups))))

    @cached_property
    def hash(self) -> str:
        """Content hash of everything in the table."""
        parts: list[bytes | str] = [json.dumps(self.metadata(), sort_keys=True)]
        for key, array in self.arrays().items():
            parts += [key, array.dtype.str, np.ascontiguousarray(array).tobytes()]
        return content_hash(parts)

    def save(self, path: str | Path) -> None:
        """Writes the table to a file, atomically; see `quantenv.evaluation.table.file` for its entries."""
        write_npz(Path(path), {**self.metadata(), "hash": self.hash}, self.arrays())

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationTable":
        """Reads a table and checks it against its hash.

        Raises:
            QuantenvError: If the file is missing, truncated, damaged or not a table.
        """
        recorded, fields = read_table(Path(path))
        try:
            table = cls(**fields)
        except QuantenvError as error:
            raise QuantenvError(f"{path}: {error}") from error
        if table.hash != recorded:
            raise QuantenvError(
                f"{path} does not match its content hash {recorded!r}: it was changed or damaged. Restore or remake it."
            )
        return table

    def metadata(self) -> dict[str, Any]:
        """Returns everything but the arrays, as JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "task": self.task,
            "task_identity": self.task_identity,
            "scheme": self.scheme,
            "evaluator_identity": self.evaluator_identity,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(tensor) for tensor in self.activations.tensors],
            "products": [asdict(product) for product in self.activations.products],
            "groups": [list(group) for group in self.groups],
            "bits": list(self.bits),
            "activation_bits": self.activation_bits,
            "reference": {split: asdict(evaluation) for split, evaluation in sorted(self.reference.items())},
            "provenance": dict(self.provenance),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by the names they have in files."""
        arrays = {"sensitivity": self.sensitivity.astype("<f8")}
        for split in sorted(self.reference):
            correct = self.correct[split]
            arrays[CORRECT + split] = correct.astype(correct.dtype.newbyteorder("<"))
            arrays[LOSS + split] = to_micronats(self.loss[split])
        for key in sorted(self.weights):
            arrays[WEIGHTS + key] = self.weights[key].astype(self.weights[key].dtype.newbyteorder("<"))
        return arrays

    def index(self, allocation: Allocation) -> int:
        """Returns an allocation's row.

        Raises:
            AllocationError: If it is for other layers, has bits that the table does not, or unequal bits within a
                group.
        """
        if allocation.names != self._names:
            allocation = allocation.check_fits(self.layers)
        heads = [allocation.weight_bits[first] for first in self._firsts]
        try:
            row = sum([self._options[bits] * stride for bits, stride in zip(heads, self.strides, strict=True)])
        except KeyError:
            raise self._outside(allocation) from None
        if (
            tuple([heads[group] for group in self._group_of]) != allocation.weight_bits
            or allocation.activation_bits != self._activations
        ):
            raise self._outside(allocation)
        return row

    def allocation(self, index: int) -> Allocation:
        """Returns a row's allocation; the inverse of `index`.

        Raises:
            QuantenvError: If there is no such row.
        """
        if not 0 <= index < self.rows:
            raise QuantenvError(f"Row {index} is not in table {self.name!r}: it has rows 0 to {self.rows - 1}.")
        heads = [self.bits[index // stride % len(self.bits)] for stride in self.strides]
        weights = [heads[group] for group in self._group_of]
        return Allocation(self._names, tuple(weights), self._activations, self.task, self.scheme)

    def evaluation(self, index: int, split: str = "search") -> Evaluation:
        """Returns a row's evaluation on a split.

        Raises:
            QuantenvError: If the table does not hold this split.
        """
        if split not in self.reference:
            raise unknown_name(f"split of table {self.name!r}:", split, self.reference)
        return Evaluation(
            int(self.correct[split][index]), self.reference[split].samples, float(self.loss[split][index])
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def _options(self) -> dict[int, int]:
        return {bits: option for option, bits in enumerate(self.bits)}

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(group[0] for group in self.members)

    @cached_property
    def _group_of(self) -> tuple[int, ...]:
        """Group of each layer."""
        owner = {layer: group for group, layers in enumerate(self.members) for layer in layers}
        return tuple(owner[layer] for layer in range(len(self.layers)))

    @cached_property
    def _activations(self) -> tuple[int, ...]:
        return (self.activation_bits,) * len(self.layers)

    def _outside(self, allocation: Allocation) -> AllocationError:
        for name, weight, activation in zip(allocation.names, *zip(*allocation.bits, strict=True), strict=True):
            if weight not in self.bits or activation != self.activation_bits:
                return AllocationError(
                    f"Layer {name!r} has {weight}/{activation} weight/activation bits, which table {self.name!r} does "
                    f"not hold: it holds weight bits {', '.join(map(str, self.bits))}, and {self.activation_bits} bits "
                    f"of all activations. Choose among these, or evaluate on task {self.task!r} itself."
                )
        group = next(g for g in self.members if len({allocation.weight_bits[layer] for layer in g}) > 1)
        return AllocationError(
            f"Table {self.name!r} ties the layers {', '.join(self._names[layer] for layer in group)}: give them the "
            f"same weight bits, or evaluate on task {self.task!r} itself."
        )


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
