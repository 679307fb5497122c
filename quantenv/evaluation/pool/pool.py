"""Evaluation by several workers at once, and workers that are processes of this machine."""

import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quantenv.core.activations import Activations
from quantenv.core.allocation import Allocation, fitting
from quantenv.core.errors import QuantenvError
from quantenv.core.locks import Lock
from quantenv.core.processes import handed_on, pin_threads, process_context, take
from quantenv.core.signals import ENDING, blocked
from quantenv.evaluation.base import Evaluation, Evaluator, known_activations
from quantenv.evaluation.pool.workers import Facts, Make, Workers, keep_freed_memory

if TYPE_CHECKING:
    from quantenv.evaluation.store.store import EvaluationStore
    from quantenv.tasks import Task

#: Pieces of a batch for each worker, so that one that is slower gets less. More of them share fewer prefixes: on 512
#: random allocations of digits, 1, 2, 4 and 8 pieces took the busier of two workers 0.82, 0.86, 0.88 and 0.92 s of CPU.
PIECES = 2


class PoolEvaluator:
    """Gives the same evaluations as one evaluator alone, to the bit, computed by several workers.

    A batch is sorted and cut into contiguous pieces, so that within a piece allocations share prefixes. With a store,
    what it holds is not sent to the workers, and they store what they compute themselves, every few seconds: a kill at
    any moment loses at most the group that each worker has in flight (see `StoredEvaluator`).

    Close it, or use it as a context manager. Threads may share it; they wait for each other.

    Args:
        workers: The workers. Where there is a store, their evaluators use it.
        store: Where evaluations are kept; None if nowhere.
    """

    def __init__(self, workers: Workers, store: "EvaluationStore | None" = None) -> None:
        self.workers = workers
        self.store = store
        self.layers = workers.facts.layers
        self.reference = workers.facts.reference
        self.identity = workers.facts.identity
        self._lock = Lock()

    @cached_property
    def activations(self) -> Activations | None:
        """The network's stored tensors and products, if the workers' evaluators know them; one of them is asked."""
        with self._lock:
            (found,) = self.workers.map(known_activations, [()])
        return found

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations on a split, one evaluation for each, in order.

        Raises:
            AllocationError: If an allocation is for other layers.
            QuantenvError: If workers die again and again, or the store fails.
        """
        asked = fitting(allocations, self.layers)
        distinct = {allocation.bits: allocation for allocation in asked}
        known = {} if self.store is None else self.store.find(self.identity, split, list(distinct))
        missing = sorted(distinct.keys() - known.keys())
        # Large pieces first: one that comes last would be waited for by all but one worker.
        pieces = sorted(cut(missing, PIECES * self.workers.count), key=len, reverse=True)
        jobs = [([distinct[bits] for bits in piece], split) for piece in pieces]
        with self._lock:
            for piece, evaluations in zip(pieces, self.workers.map(_evaluate, jobs), strict=True):
                known |= zip(piece, evaluations, strict=True)
        return [known[allocation.bits] for allocation in asked]

    def close(self) -> None:
        """Ends the workers."""
        self.workers.close()

    def __enter__(self) -> "PoolEvaluator":
        """Returns the evaluator."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers."""
        self.close()


class ProcessWorkers(Workers):
    """Workers that are processes of this machine; see `Workers`."""

    death = (BrokenProcessPool,)

    def _send(self, make: Make) -> None:
        # To bytes by plain pickle: multiprocessing's own would move the sender's tensors to shared memory, away from
        # under NumPy views of them, and containers have little of it.
        try:
            self._payload = pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise QuantenvError(
                f"The evaluator cannot be sent to other processes: {error}. Its task's network must be of a class that "
                "a module defines."
            ) from error

    def _start(self) -> "_ProcessWorker":
        return _ProcessWorker(self._payload, self.threads)


class _ProcessWorker:
    """An executor with one process, so that one worker's death leaves the others at work.

    The process also ends, at once, when the other end of its lifeline is closed, if only by this process's death.
    """

    def __init__(self, payload: bytes, threads: int) -> None:
        context = process_context()
        end, self._lifeline = context.Pipe(duplex=False)
        with blocked(*ENDING):
            self._executor = ProcessPoolExecutor(1, context, _live, (end, handed_on()))
            self.facts: Future[Facts] = self._executor.submit(_prepare, payload, threads)
        end.close()
        self._owed: Future[Any] = self.facts

    def submit(self, function: Callable[..., Any], job: Sequence[Any]) -> "Future[Any]":
        """Has a function of the worker's evaluator computed."""
        self._owed = Future()  # an interrupt may come when the job is under way and its future is not yet known
        self._owed = self._executor.submit(_work, function, job)
        return self._owed

    def stop(self) -> None:
        """Ends the process and waits until it has ended; where it is at work, without letting it finish."""
        if not self._owed.done():
            self._lifeline.close()
        self._executor.shutdown(cancel_futures=True)
        self._lifeline.close()


def cut(items: Sequence[Any], pieces: int) -> list[Sequence[Any]]:
    """Cuts a sequence into so many contiguous pieces, of equal length but for one item; none is empty."""
    pieces = min(pieces, len(items))
    edges = [len(items) * index // pieces for index in range(pieces + 1)] if pieces else []
    return [items[first:last] for first, last in itertools.pairwise(edges)]


def with_prepared(task: "Task") -> "Task":
    """Returns a task that brings its prepared network along: who gets it prepares none of its own."""
    from quantenv.evaluation.preparing import bringing, calibrate_task

    _ = task.layers, task.identity  # computed here, and kept: the copy takes them along
    prepared = calibrate_task(task).prepared
    assert prepared is not None  # which it is made from
    return bringing(task, prepared)


def without_training(task: "Task") -> "Task":
    """Returns the same without the training split, most of its bytes: it is the same in layers and identity."""
    from quantenv.tasks import Split

    lean = with_prepared(task)
    kept = {name: split for name, split in task.splits.items() if name != "train"}
    # Clones: a split that is a view of a larger tensor would be sent with all of that.
    splits = {name: Split(split.inputs.clone(), split.labels.clone()) for name, split in kept.items()}
    object.__setattr__(lean, "splits", splits)
    return lean


# In a worker process ---------------------------------------------------------------------------------------

_evaluator: Evaluator  # set by `_prepare`


def _live(lifeline: Connection, variables: dict[str, str]) -> None:
    take(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals cannot be blocked from outside

    def watch() -> None:
        lifeline.poll(None)  # nothing is ever sent: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _prepare(payload: bytes, threads: int) -> Facts:
    global _evaluator
    pin_threads(threads)
    keep_freed_memory()
    make: Make = pickle.loads(payload)  # from the process that started this one, never from a file
    pin_threads(threads)  # of torch, too, which was imported by now if a task was sent
    _evaluator = make()
    return Facts.of(_evaluator)


def _work(function: Callable[..., Any], job: Sequence[Any]) -> Any:
    return function(_evaluator, *job)


def _evaluate(evaluator: Evaluator, allocations: Sequence[Allocation], split: str) -> list[Evaluation]:
    return evaluator.evaluate(allocations, split)
