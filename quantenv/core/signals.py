"""Signals, and processes that are started here."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: What a terminal, a scheduler and a closed terminal send to end a program.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Lets processes that are started within never receive some signals.

    A terminal sends Ctrl-C to a whole group of processes, and schedulers SIGTERM. What to do about it is for the one
    that started the others to say. Does nothing where the system cannot block signals.

    Args:
        numbers: The signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
