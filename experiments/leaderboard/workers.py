"""Runs many independent searches at once, in processes of this machine or on a Ray cluster."""

import contextlib
import importlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from experiments.leaderboard.jobs import Record, Refusal, run_job
from experiments.leaderboard.suite import Job
from experiments.options.signals import GracefulStop, Interrupted
from quantenv.core.errors import QuantenvError
from quantenv.core.processes import end_with_parent, handed_on, one_thread_each, pin_threads, process_context, take
from quantenv.core.signals import blocked

Outcome = Record | Refusal

#: Seconds after which a signal is noticed while no search ends.
PATIENCE = 0.5
#: How often Ray runs a search again whose machine was lost.
RETRIES = 3


def attempt(job: Job, store: str | None) -> Outcome:
    """Runs a search, or tells why its agent cannot."""
    try:
        return run_job(job, store)
    except QuantenvError as error:
        return Refusal(str(error))


def run_all(
    jobs: Sequence[Job], workers: int, pool: str, stop: GracefulStop, store: str | None = None
) -> Iterator[tuple[Job, Outcome]]:
    """Runs searches, each with one thread.

    Args:
        jobs: The searches.
        workers: How many run at the same time.
        pool: ``processes`` or ``ray``.
        stop: Once a signal has come, no further search begins; those that run are finished.
        store: Where evaluations of networks are kept.

    Yields:
        Searches and their outcomes, as they end.

    Raises:
        Interrupted: After a signal, when the searches at hand have ended.
        QuantenvError: If a process was killed, or Ray is not installed.
    """
    run = _with_ray if pool == "ray" else _in_processes
    yield from run(jobs, workers, stop, store)


def _in_processes(
    jobs: Sequence[Job], workers: int, stop: GracefulStop, store: str | None
) -> Iterator[tuple[Job, Outcome]]:
    waiting = iter(jobs)
    running: dict[Future[Outcome], Job] = {}
    workers = min(workers, max(1, len(jobs)))
    context = process_context()
    with one_thread_each(), ProcessPoolExecutor(workers, context, _begin_worker, (handed_on(),)) as pool:

        def fill() -> None:
            while len(running) < workers + 1 and (job := next(waiting, None)) is not None:
                running[pool.submit(attempt, job, store)] = job

        try:
            with blocked(signal.SIGINT, signal.SIGHUP):  # until `_begin_worker` ignores them
                fill()
            while running:
                done, _ = wait(running, timeout=PATIENCE, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
                stop.check()
                fill()
        except Interrupted:
            with contextlib.suppress(BrokenProcessPool):  # the signal may have come to all processes: those are ended
                for future, job in running.items():
                    if not future.cancel():
                        yield job, future.result()
            raise
        except BrokenProcessPool as error:
            stop.check()  # SIGTERM may have come to all processes
            raise QuantenvError(
                "A process that ran searches was killed, perhaps for memory: choose fewer --workers and run the same "
                "command again, which continues with what is missing."
            ) from error


def _with_ray(
    jobs: Sequence[Job], workers: int, stop: GracefulStop, store: str | None
) -> Iterator[tuple[Job, Outcome]]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise QuantenvError(f"--pool ray needs Ray ({error}): pip install 'quantenv[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _begin_ray(ray, workers)
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(attempt)
    waiting = iter(jobs)
    running: dict[Any, Job] = {}

    def fill() -> None:
        while len(running) < workers + 1 and (job := next(waiting, None)) is not None:
            running[remote.remote(job, store)] = job

    try:
        fill()
        while running:
            done, _ = ray.wait(list(running), timeout=PATIENCE)
            for reference in done:
                yield running.pop(reference), ray.get(reference)
            stop.check()
            fill()
    except Interrupted:
        for reference, job in running.items():
            yield job, ray.get(reference)
        raise
    finally:
        if ours:
            ray.shutdown()


def _begin_ray(ray: Any, workers: int) -> None:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts a Ray that only this machine can reach."""
    local: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"address": "local", "num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise QuantenvError(f"Cannot reach the Ray cluster: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in its place


def _begin_worker(variables: dict[str, str]) -> None:
    """Leaves what reaches all processes of a terminal to the first one, and ends when that one does."""
    take(variables, signal.SIGTERM)
    pin_threads(1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
