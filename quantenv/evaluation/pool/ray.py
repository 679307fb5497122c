"""Workers that are actors on a Ray cluster: other machines' cores, with the same interface as processes.

Ray's own `ray.util.ActorPool` does not fit: it forgets an actor whose call failed, and knows of no retries.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, cast

from quantenv.core.errors import QuantenvError
from quantenv.core.processes import pin_threads
from quantenv.evaluation.pool.workers import Facts, Make, Workers, keep_freed_memory

try:
    import ray
    from ray._private import ray_constants
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
except ImportError as missing:
    raise QuantenvError("Pool 'ray' needs Ray: pip install 'quantenv[ray]'") from missing

logger = logging.getLogger(__name__)

#: Seconds that a cluster may take to answer.
KNOCK_SECONDS = 10


class RayWorkers(Workers):
    """Workers that are actors on a Ray cluster; see `Workers`.

    A Ray that already runs in this process is used as it is. Otherwise one is started that only this machine can
    reach, unless an address says which cluster to join. quantenv must be installed on every machine of it, and a
    store, if there is one, must be reachable from all of them.

    Args:
        make: Makes the evaluator in each worker.
        count: Workers, at least 1.
        threads: Threads of torch in each worker, and the CPUs that each asks the cluster for.
        address: Of a cluster, as Ray takes it (``auto``, or host:port); by default that of ``$RAY_ADDRESS``, if set.
    """

    death = (RayActorError, WorkerCrashedError, OutOfMemoryError)

    def __init__(self, make: Make, count: int, threads: int | None = None, address: str | None = None) -> None:
        self._address = address
        self._began_ray = False
        super().__init__(make, count, threads)

    def close(self) -> None:
        """Ends all workers at once, and Ray, if it was started or joined for them."""
        super().close()
        if self._began_ray:
            self._began_ray = False
            ray.shutdown()

    def _send(self, make: Make) -> None:
        if not ray.is_initialized():
            self._begin_ray()
        needed, there = self.count * self.threads, ray.cluster_resources().get("CPU", 0)
        if there < needed:
            logger.warning("%d Ray workers wait for %d CPUs, but the cluster has %d.", self.count, needed, there)
        self._make = ray.put(make)  # once for the whole cluster

    def _start(self) -> "_RayWorker":
        return _RayWorker(self._make, self.threads)

    def _begin_ray(self) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address == "local":
                with _only_this_machine() as options:
                    ray.init(address, num_cpus=self.count * self.threads, **options, **quiet)
            else:
                _knock(address)
                ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise QuantenvError(f"Cannot use a Ray cluster at {address!r}: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # Ray put its own in its place
        self._began_ray = True


@contextmanager
def _only_this_machine() -> Iterator[dict[str, Any]]:
    """Gives options for a Ray that listens on the loopback address alone, has no dashboard and reports to nobody.

    Whoever reaches a Ray can run code in it. It listens on the loopback address only where it is told that this
    system has no clusters, as on macOS and Windows: elsewhere it puts the machine's outer address in its place
    (`ray._private.services.resolve_ip_for_localhost`).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _knock(address: str) -> None:
    """Raises OSError if nobody answers at host:port: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


class _RayWorker:
    """One actor."""

    def __init__(self, make: Any, threads: int) -> None:
        self._actor = cast(Any, ray.remote(_Actor)).options(num_cpus=threads).remote()
        self.facts: Future[Facts] = _future(self._actor.prepare.remote(make, threads))

    def submit(self, function: Callable[..., Any], job: Sequence[Any]) -> "Future[Any]":
        """Has a function of the worker's evaluator computed."""
        return _future(self._actor.work.remote(function, job))

    def stop(self) -> None:
        """Ends the actor at once."""
        ray.kill(self._actor)


class _Actor:
    """What runs in the cluster."""

    def prepare(self, make: Make, threads: int) -> Facts:
        """Makes the evaluator."""
        pin_threads(threads)
        keep_freed_memory()
        self._evaluator = make()
        return Facts.of(self._evaluator)

    def work(self, function: Callable[..., Any], job: Sequence[Any]) -> Any:
        """Computes a function of the evaluator."""
        return function(self._evaluator, *job)


def _future(reference: Any) -> "Future[Any]":
    """Returns the future of a Ray result, with the errors that the actor raised instead of Ray's wrappings of them."""
    result: Future[Any] = Future()

    def pass_on(done: "Future[Any]") -> None:
        error = done.exception()
        if error is None:
            result.set_result(done.result())
        else:
            result.set_exception(error.cause if isinstance(error, RayTaskError) else error)

    reference.future().add_done_callback(pass_on)
    return result
