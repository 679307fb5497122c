"""Workers that each hold an evaluator of their own: jobs are handed out, the dead replaced, results kept in order.

What a worker is, a process or a Ray actor, is said by subclasses of `Workers`. This module and `pool` import no torch,
so that a new process can pin its threads first.
"""

import ctypes
import importlib
import logging
import os
import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.layers import LayerSpec
from quantenv.core.typed import MOST_THREADS, MOST_WORKERS, checked
from quantenv.evaluation.base import Evaluation, Evaluator

logger = logging.getLogger(__name__)

#: How often a job is tried whose worker dies.
MOST_ATTEMPTS = 3
#: Kinds of workers by name, as "module:class".
POOLS = {
    "processes": "quantenv.evaluation.pool.pool:ProcessWorkers",
    "ray": "quantenv.evaluation.pool.ray:RayWorkers",
}
#: Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: Makes a worker's evaluator, in the worker.
Make = Callable[[], Evaluator]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Facts:
    """What a worker says of its evaluator."""

    identity: str
    layers: tuple[LayerSpec, ...]
    reference: Evaluation

    @classmethod
    def of(cls, evaluator: Evaluator) -> "Facts":
        """Asks an evaluator."""
        return cls(evaluator.identity, tuple(evaluator.layers), evaluator.reference)


class Worker(Protocol):
    """One worker: does what it is given one after the other, and its death shows in every future it owes."""

    facts: "Future[Facts]"
    """Of its evaluator, once it is made; the error if it could not be made."""

    def submit(self, function: Callable[..., Any], job: Sequence[Any]) -> "Future[Any]":
        """Has ``function(evaluator, *job)`` computed."""
        ...

    def stop(self) -> None:
        """Ends the worker at once, without letting it finish what it does."""
        ...


class Workers(ABC):
    """Several workers, all with the same evaluator. They start together and end with `close`.

    Args:
        make: Makes the evaluator in each worker; sent there by value.
        count: Workers, at least 1.
        threads: Threads of torch in each worker; by default as many as cores are left to each, at least 1.

    Raises:
        QuantenvError: If a number is out of range, or a worker dies while starting, or measures something else than
            the others. What `make` raises in a worker is raised here.
    """

    death: ClassVar[tuple[type[BaseException], ...]]
    """Errors of futures that mean that their worker died."""

    def __init__(self, make: Make, count: int, threads: int | None = None) -> None:
        self.count = count = _counted(count, "workers", MOST_WORKERS)
        self.threads = threads_each(count) if threads is None else _counted(threads, "threads", MOST_THREADS)
        self._workers: list[Worker] = []
        try:
            self._send(make)
            self._workers += [self._start() for _ in range(count)]
            self.facts = self._workers[0].facts.result()
            for worker in self._workers:
                self._check(worker)
        except self.death as error:
            self.close()
            raise QuantenvError(
                f"A worker died while it was starting ({_reason(error)}). Is there memory for {count} of them? "
                'A script that starts workers must do so under `if __name__ == "__main__":`.'
            ) from error
        except BaseException:
            self.close()
            raise

    def map(self, function: Callable[..., Result], jobs: Sequence[Sequence[Any]]) -> Iterator[Result]:
        """Computes ``function(evaluator, *job)`` of every job on whichever worker is free.

        A worker that dies is replaced, with a line in the log, and its job tried again.

        Args:
            function: A module's function.
            jobs: Arguments behind the evaluator.

        Yields:
            The results, in the order of the jobs, whatever order they were computed in.

        Raises:
            QuantenvError: If the workers died `MOST_ATTEMPTS` times on one job. What the function raises is raised
                here, with its message.
        """
        attempts = [0] * len(jobs)
        waiting, idle = deque(range(len(jobs))), list(range(self.count))
        running: dict[Future[Result], tuple[int, int]] = {}
        # Not `concurrent.futures.wait`: it takes the locks of all futures one by one, and an interrupt meanwhile leaves
        # some taken for ever, on which ending the workers would then wait.
        done: SimpleQueue[Future[Result]] = SimpleQueue()
        finished: dict[int, Result] = {}
        for wanted in range(len(jobs)):
            while wanted not in finished:
                while idle and waiting:
                    slot, number = idle.pop(0), waiting.popleft()
                    future = self._submit(slot, function, jobs[number])
                    running[future] = slot, number
                    future.add_done_callback(done.put)
                future = done.get()
                slot, number = running.pop(future)
                try:
                    self._check(self._workers[slot])
                    finished[number] = future.result()
                except self.death as error:
                    attempts[number] += 1
                    self._replace(slot, attempts[number], error)
                    waiting.appendleft(number)
                idle.append(slot)
            yield finished.pop(wanted)

    def close(self) -> None:
        """Ends all workers at once; what they have not finished is lost."""
        ending, self._workers = self._workers, []
        if ending:
            with ThreadPoolExecutor(len(ending)) as together:
                list(together.map(lambda worker: worker.stop(), ending))

    def __enter__(self) -> "Workers":
        """Returns the workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers."""
        self.close()

    @abstractmethod
    def _send(self, make: Make) -> None:
        """Keeps what every worker makes its evaluator from, in the form in which it is sent."""

    @abstractmethod
    def _start(self) -> Worker:
        """Starts a worker, without waiting for it."""

    def _submit(self, slot: int, function: Callable[..., Result], job: Sequence[Any]) -> "Future[Result]":
        if not self._workers:
            raise QuantenvError("The workers were closed: make new ones.")
        try:
            return self._workers[slot].submit(function, job)
        except self.death as error:  # it died since its last job
            failed: Future[Result] = Future()
            failed.set_exception(error)
            return failed

    def _check(self, worker: Worker) -> None:
        """Waits until a worker's evaluator is made, and sees that it is the same as the others'."""
        facts = worker.facts.result()
        if facts != self.facts:
            raise QuantenvError(
                f"Two workers measure different things: evaluator identity {self.facts.identity!r} with reference "
                f"{self.facts.reference} and {facts.identity!r} with {facts.reference}. All need the same versions of "
                "quantenv and torch, and CPUs with the same vector instructions."
            )

    def _replace(self, slot: int, attempts: int, error: BaseException) -> None:
        """Starts another worker in the place of a dead one, unless its job has been tried often enough."""
        if attempts == MOST_ATTEMPTS:
            raise QuantenvError(
                f"Workers died {attempts} times over the same evaluations ({_reason(error)}), so they were given up: "
                "look for a lack of memory, or use fewer workers. What was stored before is kept."
            ) from error
        logger.warning(
            "Worker %d of %d died (%s). Another takes its place and tries again: attempt %d of %d.",
            *(slot + 1, self.count, _reason(error), attempts + 1, MOST_ATTEMPTS),
        )
        self._workers[slot].stop()
        self._workers[slot] = self._start()


def start_workers(
    make: Make, count: int, threads: int | None = None, pool: str = "processes", address: str | None = None
) -> Workers:
    """Starts workers of a registered kind.

    Args:
        make: Makes the evaluator in each worker.
        count: Workers.
        threads: Threads of torch in each.
        pool: ``processes`` on this machine, or ``ray``: actors on a Ray cluster.
        address: Ray cluster to use; only for ``ray``.

    Returns:
        The workers; see `Workers` for what is raised.

    Raises:
        QuantenvError: If the kind is unknown, has no address, or is not installed.
    """
    check_pool(pool, address)
    module, _, name = POOLS[pool].partition(":")
    kind = getattr(importlib.import_module(module), name)
    workers: Workers = kind(make, count, threads, *([address] if pool == "ray" else []))
    return workers


def _counted(value: object, name: str, most: int) -> int:
    """Returns a number of workers or threads, or raises QuantenvError."""
    count: int = checked(value, int, name)
    if not 1 <= count <= most:
        raise QuantenvError(f"{name} is {count}; expected a whole number of at least 1, and at most {most}.")
    return count


def check_pool(pool: str, address: str | None) -> None:
    """Checks the name of a kind of workers and whether it takes an address.

    Raises:
        QuantenvError: If the kind is unknown, or is given an address and takes none.
    """
    if pool not in POOLS:
        raise unknown_name("pool", pool, POOLS)
    if address is not None and pool != "ray":
        raise QuantenvError(f"A Ray address is given, but the pool is {pool!r}: choose pool 'ray', or leave it out.")


def threads_each(workers: int) -> int:
    """Returns how many threads each worker gets by default, so that workers x threads = cores, and at least 1."""
    # Where a process can be kept to some cores, those count.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, workers))


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors free, for the next ones, where its C library is glibc.

    By default glibc gives every large block back to the kernel, until it has learned better from large ones that were
    freed. In a worker it does not learn: page faults made evaluations of ResNet-20 take 1.4 times as long.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that is documented to be accepted
        library.mallopt(_TRIM_THRESHOLD, 512 << 20)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
