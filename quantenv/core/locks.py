"""Locks for what threads share: a network that an allocation switches, and the preparation of tasks and networks."""

import threading
from types import TracebackType


class Lock:
    """A lock that its holder may take again. A copy, here or in another process, is a new lock that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type["Lock"], tuple[()]]:
        return Lock, ()

    def __enter__(self) -> "Lock":
        """Waits for the lock."""
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""
        self._lock.release()


#: Held while tasks are made and networks are traced and measured: torch.fx changes all modules' calls meanwhile, and
#: hooks count what they see.
PREPARING = Lock()
