"""Fine-tuning with live progress, and what is kept of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from experiments.options.console import announcements
from experiments.options.signals import GracefulStop
from experiments.runs.progress import ProgressView, epoch_text
from quantenv.core.allocation import Allocation
from quantenv.core.tensor_file import WEIGHTS_FORMAT, write_tensors
from quantenv.tasks import Task
from quantenv.training import FinetuneConfig, FinetuneResult, finetune

Curves = Callable[[int, Mapping[str, float]], None]


def run_finetune(
    task: Task,
    allocation: Allocation,
    recipe: FinetuneConfig,
    name: str,
    curves: Curves | None,
    stop: GracefulStop,
    checkpoint: Path | None = None,
    say: Console | None = None,
) -> FinetuneResult:
    """Fine-tunes an allocation under a progress bar.

    Args:
        task: The task.
        allocation: Bits of its layers.
        recipe: Epochs, learning rate and so on.
        name: Shown beside the bar.
        curves: Also receives every epoch's metrics.
        stop: Says when to end early.
        checkpoint: File that an interrupted fine-tuning goes on from; see `quantenv.training.finetuning`.
        say: Where the bar is shown, by default on stderr.

    Returns:
        The best checkpoint by the search split.

    Raises:
        Interrupted: If a signal came.
    """
    with ProgressView(say or announcements(), f"fine-tune {name}", recipe.epochs) as view:

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            if curves is not None:
                curves(epoch, metrics)
            view.show(epoch, epoch_text(metrics))
            stop.check()

        return finetune(task, allocation, recipe, on_epoch, checkpoint, stop.check)


def save_weights(result: FinetuneResult, path: Path) -> None:
    """Writes a fine-tuned network's state dict as safetensors with a checksum, atomically."""
    write_tensors(path, WEIGHTS_FORMAT, {}, result.state)
