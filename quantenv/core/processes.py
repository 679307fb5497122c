"""How processes of this machine are started: forked from one that has imported torch, where the system is Linux.

A process that starts from nothing imports torch and quantenv for 1.5 to 3 seconds, and keeps 200 MB of its own for
them. So the first one that is needed starts a server (`multiprocessing.forkserver`) that imports both and does nothing
else, above all starts no threads; every process is a fork of that, in some hundredths of a second. The server ends with
the process that started it.

What a process would have had from its parent by being spawned it is told: see `handed_on` and `take`. This module
imports no torch, so that a new process can pin its threads first.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from typing import TYPE_CHECKING

from quantenv.core.signals import ENDING, blocked

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

#: What the server imports.
PRELOADED = ("quantenv.evaluation.post_training", "quantenv.tasks")
#: Environment variables that number the threads of the libraries a process loads, read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Environment variable and setting that make glibc's malloc ask for huge pages ("The GNU C Library", tunables).
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def process_context() -> "ForkServerContext | SpawnContext":
    """Returns how to start processes, after the server is started if there is to be one.

    Processes that come from the server never receive what ends a program (`quantenv.core.signals.ENDING`), unless they
    unblock it. Where no server can be started, they are spawned, which gives the same results later.
    """
    # Python 3.11.0 lets any user of the machine send the server what to unpickle (CVE-2022-42919).
    if sys.platform != "linux" or sys.version_info < (3, 11, 1):
        return get_context("spawn")
    with blocked(*ENDING):
        resource_tracker.ensure_running()  # first, as it unblocks signals when it has started
    with blocked(*ENDING), huge_pages(), _variables_of_the_server():
        forkserver.set_forkserver_preload(list(PRELOADED))
        try:
            forkserver.ensure_running()
        except OSError:  # this process is a fork of one with a server; or $TMPDIR is too long for a socket's name
            return get_context("spawn")
    return get_context("forkserver")


def handed_on() -> dict[str, str]:
    """Returns the environment variables for a process that is started now, which hands them to `take`."""
    return dict(os.environ)


def take(variables: Mapping[str, str], *received: signal.Signals) -> None:
    """Gives this process what it would have of the one that started it, and not of the server.

    Args:
        variables: The environment variables.
        received: Signals that this process is to receive, of those that programs end by.
    """
    os.environ.clear()
    os.environ.update(variables)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, received)


def end_with_parent() -> None:
    """Has this process end when the one that started it is killed: a pool's workers would wait for work for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def pin_threads(threads: int) -> None:
    """Lets torch, and libraries that this process loads later, use so many threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if "torch" in sys.modules:  # otherwise it reads the variables when it is imported, if it is
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Lets processes that are started within use huge pages for tensors, where the C library is glibc 2.35 or newer.

    Fewer misses when addresses are translated: an evaluation of digits took 0.95, one of ResNet-20 0.96 of the time.
    Only the variable of a process that is yet to start can say it, as glibc reads it first of all.
    """
    before = os.environ.get(_TUNABLES)
    if _HUGE_PAGES.partition("=")[0] in (before or ""):  # the user has said what to do
        yield
        return
    with _variables({_TUNABLES: f"{before}:{_HUGE_PAGES}" if before else _HUGE_PAGES}):
        yield


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Lets processes that are started within compute with one thread, by the libraries' variables."""
    with _variables(dict.fromkeys(THREAD_VARIABLES, "1")):
        yield


@contextmanager
def _variables_of_the_server() -> Iterator[None]:
    """Has the server find the modules that this process finds, and none in the working directory unless this one does.

    Its libraries start no threads, which forks would not have.
    """
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    with _variables({"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}), one_thread_each():
        yield


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
