"""Live progress: a bar on a terminal, a plain line now and then in a log."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.runs.episodes import Episode
from experiments.runs.top_k import TopK
from quantenv.hardware import Budget

#: Lines that a log gets for one bar.
LINES = 10


class ProgressView:
    """Shows how far something is, with a text that changes."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        """Starts at 0.

        Args:
            console: Where to show it.
            title: What is going on.
            total: Steps in all.
        """
        self._console, self._title, self._total, self._line = console, title, total, -1
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, text="")

    def show(self, done: int, text: str) -> None:
        """Shows that `done` steps are done."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, text=text)
        elif (line := done * LINES // max(1, self._total)) > self._line:
            self._line = line
            self._console.print(f"{self._title} {done}/{self._total}  {text}", markup=False)

    def __enter__(self) -> "ProgressView":
        """Starts drawing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops drawing; the last state stays visible."""
        self._bar.stop()


class Rate:
    """Evaluations per second, as an exponential moving average over the last few."""

    def __init__(self, weight: float = 0.1) -> None:
        """Starts the clock.

        Args:
            weight: Of the newest duration in the average, 0-1.
        """
        self._weight, self._last = weight, time.perf_counter()
        self._seconds: float | None = None

    def tick(self) -> float:
        """Counts one evaluation and returns evaluations per second."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        previous = seconds if self._seconds is None else self._seconds
        self._seconds = previous + self._weight * (seconds - previous)
        return 1 / max(self._seconds, 1e-9)


def summary(episode: Episode, top: TopK, budgets: Sequence[Budget], rate: float) -> str:
    """Returns the line that is shown for an episode: reward, best accuracy, cost/budget and speed."""
    best = f"{top.best.accuracy:.2%}" if top.best else "none feasible"
    shares = " ".join(f"{b.metric} {episode.costs[b.metric] / b.limit:.2f}" for b in budgets)
    return f"reward {episode.reward:+.4f}  best {best}  cost/budget {shares}  {rate:.0f} evaluations/s"


def epoch_text(metrics: Mapping[str, float]) -> str:
    """Returns the line that is shown for an epoch of fine-tuning."""
    return "  ".join(f"{name.removeprefix('qat/').replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
