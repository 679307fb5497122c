"""Ctrl-C, SIGTERM and SIGHUP end a command with one sentence: a run at its next safe point, all else at once.

The first signal is kept by `GracefulStop` where there is one; the next one raises wherever the command is; any further
one ends the process without another word, so that an impatient user never meets a traceback.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

#: As `quantenv.core.signals.ENDING`: this module comes before quantenv, whose import takes half a second.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupted(KeyboardInterrupt):
    """The run was asked to end; not an Exception, so that no library takes it for an error of its own."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class EndAtOnce(KeyboardInterrupt):
    """The command was asked to end where it is, without what a run does at its next safe point."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class GracefulStop:
    """Catches the first signal while it is entered; a second one acts at once.

    Only the main thread receives signals: in any other one it does nothing.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self._number: int | None = None
        self._previous: dict[int, Handler] = {}

    def check(self, *_: object) -> None:
        """Raises Interrupted if a signal has come. Takes and ignores any arguments, to serve as a callback."""
        if self._number is not None:
            raise Interrupted(self._number)

    def __enter__(self) -> "GracefulStop":
        """Puts the handlers in place."""
        self._previous = _handle(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the handlers; after a second signal the command line's stay those that end the process."""
        for number, handler in self._previous.items():
            ended = handler is _raise and signal.getsignal(number) is _exit
            signal.signal(number, _exit if ended else handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        _hang_up(number)
        # Not the handlers from before: a process started in the background inherits one that ignores Ctrl-C.
        _handle(_raise)


def end_at_once() -> dict[int, Handler]:
    """Lets a signal raise `EndAtOnce` from now on, and a second one end the process.

    Returns:
        The handlers from before, for `restore`.
    """
    sys.unraisablehook = _unraisable
    return _handle(_raise)


def restore(handlers: dict[int, Handler]) -> None:
    """Puts handlers from before back in place."""
    sys.unraisablehook = sys.__unraisablehook__
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def exiting_at_once() -> Iterator[None]:
    """Lets a signal end the process within: libraries that are being imported bear no exception in their midst."""
    before = _handle(_exit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_from_now_on() -> None:
    """Lets any further signal go unheard: nothing is left to do but Python's own end, which would show a traceback."""
    _handle(signal.SIG_IGN)


def _handle(handler: Handler) -> dict[int, Handler]:
    """Puts a handler in place and returns those from before; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # `nohup` has SIGHUP ignored, and means it.
    numbers = [number for number in ENDING if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _raise(number: int, frame: FrameType | None) -> None:
    _handle(_exit)
    _hang_up(number)
    raise EndAtOnce(number)


def _exit(number: int, frame: FrameType | None) -> None:
    show_cursor = b"\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else b""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, show_cursor + b"quantenv: interrupted.\n")
    os._exit(128 + number)


def _hang_up(number: int) -> None:
    """Turns away from a terminal that was closed: writing to it would fail."""
    if number == getattr(signal, "SIGHUP", None):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and stream.isatty():
                    os.dup2(null, stream.fileno())
            os.close(null)


def _unraisable(unraisable: Any) -> None:
    """Ends the process where a signal met a place that no exception can leave, such as a finaliser."""
    if isinstance(unraisable.exc_value, EndAtOnce):
        _exit(unraisable.exc_value.exit_code - 128, None)
    sys.__unraisablehook__(unraisable)
