"""An evaluator that asks the store first and computes only what was never computed before."""

import time
from collections.abc import Sequence

from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation, fitting
from quantenv.evaluation.base import Evaluation, Evaluator, known_activations
from quantenv.evaluation.store.store import Bits, EvaluationStore, Record, open_store

#: Seconds of work that are stored together by default: what a killed process may lose.
GROUP_SECONDS = 2.0
#: Seconds that a group is taken to have lasted at least: clocks have steps.
SHORTEST = 1e-6


class StoredEvaluator:
    """Gives the same evaluations as the evaluator it wraps, to the bit.

    What is missing is handed to the evaluator in groups of some seconds of work, so that it can share work between
    allocations, and each group is stored before the next is begun: a process killed at any moment loses at most the
    group in flight, one evaluation where each takes longer. An allocation is never computed twice, however often a
    batch repeats it.

    Args:
        evaluator: Computes what the store does not hold. Its identity is part of the key.
        store: Where evaluations are kept.
        task: Name of the task, for whoever reads the store.
        seconds: Work of a group, by what evaluations took so far; 0 stores each on its own.
    """

    def __init__(
        self, evaluator: Evaluator, store: EvaluationStore, task: str = "", seconds: float = GROUP_SECONDS
    ) -> None:
        self.evaluator = evaluator
        self.store = store
        self.task = task
        self.seconds = seconds
        self.layers = evaluator.layers
        self.reference = evaluator.reference
        self.identity = evaluator.identity
        self._rates: dict[str, float] = {}  # evaluations a second of each split, in its last group

    @property
    def activations(self) -> Activations | None:
        """The network's stored tensors and products, if the evaluator knows them."""
        return known_activations(self.evaluator)

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations on a split, one evaluation for each, in order.

        Raises:
            AllocationError: If an allocation is for other layers.
            StoreConflictError: If another process stored another value at the same time.
            QuantenvError: If the store fails.
        """
        asked = fitting(allocations, self.layers)
        distinct: dict[Bits, Allocation] = {allocation.bits: allocation for allocation in asked}
        known = self.store.find(self.identity, split, list(distinct))
        missing = sorted(distinct.keys() - known.keys())
        while missing:
            size = max(1, int(self.seconds * self._rates.get(split, 0.0)))
            group, missing = missing[:size], missing[size:]
            started = time.perf_counter()
            evaluations = self.evaluator.evaluate([distinct[bits] for bits in group], split)
            self._rates[split] = len(group) / max(time.perf_counter() - started, SHORTEST)
            computed = dict(zip(group, evaluations, strict=True))
            self.store.add_all(Record(self.identity, split, bits, computed[bits], self.task) for bits in group)
            known |= computed
        return [known[allocation.bits] for allocation in asked]


def through_store(evaluator: Evaluator, store: EvaluationStore | str | None, task: str = "") -> Evaluator:
    """Lets an evaluator's results be stored.

    Args:
        evaluator: The evaluator.
        store: An open store, or where one is; see `open_store`. None means the user's, ``off`` none.
        task: Name of the task, for whoever reads the store.

    Returns:
        The evaluator through the store, or the bare one if the store is off.

    Raises:
        QuantenvError: If the store cannot be opened.
    """
    opened = store if isinstance(store, EvaluationStore) else open_store(store)
    return evaluator if opened is None else StoredEvaluator(evaluator, opened, task)
