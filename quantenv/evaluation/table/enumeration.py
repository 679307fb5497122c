"""Evaluating every allocation of a task into a table: depth first, so that shared prefixes are computed once."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantenv.core.allocation import Allocation
from quantenv.core.arguments import listed, whole_number
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.ties import resolve_groups
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.pool.pool import without_training
from quantenv.evaluation.pool.workers import start_workers
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.file import (
    CORRECT,
    LOSS,
    MOST_LOSS,
    MOST_ROWS,
    MOST_WEIGHT_BYTES,
    from_micronats,
    to_micronats,
)
from quantenv.evaluation.table.row_blocks import RowBlocks
from quantenv.tasks import Task
from quantenv.tasks.activations import activations_of

SPLITS = ("search", "test")
#: Rows that one worker evaluates at a time, and that are kept together.
BLOCK = 1024


def enumerate_task(
    task: Task,
    name: str,
    sensitivity: np.ndarray,
    bits: Sequence[int] = (2, 4, 6, 8),
    tied: Sequence[Sequence[str]] | None = None,
    activation_bits: int = 8,
    backend: str = "auto",
    workers: int = 1,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    pool: str = "processes",
    address: str | None = None,
    blocks: RowBlocks | None = None,
) -> EvaluationTable:
    """Evaluates every allocation of weight bits on the search and the test split; losses are rounded to 1e-6 nats.

    Args:
        task: The task. With several workers it is sent to each of them.
        name: Name of the table.
        sensitivity: What observations of the table show of each layer, float64 (L,); see
            `quantenv.sensitivity.layer_sensitivity`.
        bits: Weight bits on offer.
        tied: Groups of layers with equal bits; None ties nothing.
        activation_bits: Bits of all activations.
        backend: Backend of `PTQEvaluator`.
        workers: Workers, one thread each; 1 evaluates here, with this process's threads.
        provenance: What the table says of how it was made.
        progress: Called with the rows done and all rows, first of all with the rows that are kept from before.
        pool: Kind of workers; see `quantenv.evaluation.make_pool`.
        address: Ray cluster; see `quantenv.evaluation.make_pool`.
        blocks: Where rows are kept as they are evaluated, and found again by a later call with an evaluator of the same
            identity and the same bits, ties and activation bits. Remove them once the table is written.

    Returns:
        The table.

    Raises:
        OSError: If rows cannot be kept.
        QuantenvError: If the table would have more than 2**22 rows, a part of it is out of range, a loss is more than
            a table can hold, or workers cannot start, die again and again, or measure something else than this process
            would.
    """
    bits = tuple(
        sorted(whole_number(each, "A bit-width on offer", 1, 8) for each in listed(bits, "bits", "bit-widths"))
    )
    groups = resolve_groups(tied, task.layers)
    rows = len(bits) ** len(groups)
    if rows > MOST_ROWS:
        raise QuantenvError(
            f"{len(bits)} bit options in {len(groups)} groups make {rows:,} allocations, more than a table holds "
            f"({MOST_ROWS:,}): offer fewer bits or tie layers."
        )
    evaluator = PTQEvaluator(task, backend)
    splits = {split: len(task.split(split)) for split in SPLITS}
    columns = {f"{kind}{split}": np.zeros(rows, dtype="<u4") for split in SPLITS for kind in (CORRECT, LOSS)}
    key = content_hash([evaluator.identity, str(bits), str(groups), str(activation_bits), str(BLOCK)])
    jobs, kept = [], 0
    for first in range(0, rows, BLOCK):
        last = min(first + BLOCK, rows)
        found = None if blocks is None else blocks.find(key, first, last - first, tuple(columns))
        if found is None:
            jobs.append((bits, groups, activation_bits, first, last))
            continue
        kept += last - first
        for column, values in found.items():
            columns[column][first:last] = values
    progress(kept, rows)
    for (*_, first, last), evaluated in zip(jobs, _run(evaluator, jobs, workers, pool, address), strict=True):
        block: dict[str, np.ndarray] = {}
        for split in SPLITS:
            block |= _columns(split, evaluated[split], first)
        if blocks is not None:
            blocks.keep(key, first, block)
        for column, values in block.items():
            columns[column][first:last] = values
        kept += last - first
        progress(kept, rows)
    names = [layer.name for layer in task.layers]
    return EvaluationTable(
        name=name,
        task=task.name,
        task_identity=task.identity,
        scheme=task.scheme,
        evaluator_identity=evaluator.identity,
        layers=task.layers,
        activations=activations_of(task),
        groups=tuple(tuple(names[index] for index in group) for group in groups),
        bits=bits,
        activation_bits=activation_bits,
        reference={split: evaluator.float_evaluation(split) for split in SPLITS},
        correct={
            split: columns[CORRECT + split].astype(np.uint16 if samples < 1 << 16 else np.uint32)
            for split, samples in splits.items()
        },
        loss={split: from_micronats(columns[LOSS + split]) for split in SPLITS},
        sensitivity=np.array(sensitivity),
        provenance={**(provenance or {}), "backend": evaluator.backend},
        weights=_small_weights(task),
    )


def _columns(split: str, evaluations: Sequence[Evaluation], first: int) -> dict[str, np.ndarray]:
    """Returns a split's counts and losses in micro-nats, uint32, by the names of a table's arrays."""
    losses = np.array([evaluation.loss for evaluation in evaluations], dtype=np.float64)
    outside = np.flatnonzero(~(losses <= MOST_LOSS))
    if len(outside):
        raise QuantenvError(
            f"Row {first + outside[0]} has a loss of {losses[outside[0]]} nats on the {split} split; a table holds at "
            f"most {MOST_LOSS}: divide the network's outputs by a constant, or offer more bits."
        )
    correct = np.array([evaluation.correct for evaluation in evaluations], dtype="<u4")
    return {CORRECT + split: correct, LOSS + split: to_micronats(losses)}


def _small_weights(task: Task) -> dict[str, np.ndarray]:
    # Copies: sending a task to a worker moves its tensors to shared memory, away from under views of them.
    state = {key: value.detach().cpu().numpy().copy() for key, value in task.network.state_dict().items()}
    return state if sum(array.nbytes for array in state.values()) <= MOST_WEIGHT_BYTES else {}


def _run(
    evaluator: PTQEvaluator, jobs: Sequence[tuple[Any, ...]], workers: int, pool: str, address: str | None
) -> Iterator[dict[str, list[Evaluation]]]:
    """Yields the evaluations of each job on each split, in order."""
    if not jobs:
        return
    if workers == 1:
        yield from (_evaluate_rows(evaluator, *job) for job in jobs)
        return
    make = partial(PTQEvaluator, without_training(evaluator.task), evaluator.backend)
    with start_workers(make, workers, 1, pool, address) as running:
        if running.facts.identity != evaluator.identity:
            raise QuantenvError(
                "The workers would measure something else than this process: they need the same versions of quantenv "
                "and torch, and a CPU with the same vector instructions."
            )
        yield from running.map(_evaluate_rows, jobs)


def _evaluate_rows(
    evaluator: PTQEvaluator,
    bits: tuple[int, ...],
    groups: tuple[tuple[int, ...], ...],
    activation_bits: int,
    first: int,
    last: int,
) -> dict[str, list[Evaluation]]:
    """Evaluates the rows from `first` to before `last` of the table on each split."""
    weights = [0] * len(evaluator.layers)
    allocations = []
    for heads in itertools.islice(itertools.product(bits, repeat=len(groups)), first, last):
        for group, head in zip(groups, heads, strict=True):
            for layer in group:
                weights[layer] = head
        allocations.append(Allocation.make(evaluator.layers, weights, activation_bits))
    return {split: evaluator.evaluate(allocations, split) for split in SPLITS}
