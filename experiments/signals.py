"""Ctrl-C and SIGTERM end a run at the next safe point instead of in the middle of something."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to end; not an Exception, so that no library takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class GracefulStop:
    """Catches the first signal while it is entered; a second one acts at once.

    Use it in the main thread, which is the one that receives signals.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def check(self, *_: object) -> None:
        """Raises Interrupted if a signal has come. Takes and ignores any arguments, to serve as a callback."""
        if self._number is not None:
            raise Interrupted(self._number)

    def __enter__(self) -> "GracefulStop":
        """Puts the handlers in place."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        # Not the handlers from before: a process started in the background inherits one that ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
