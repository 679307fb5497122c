"""`quantenv finetune`: quantization-aware fine-tuning of a run's best allocation, or of any allocation file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from experiments.options.console import announcements, results
from experiments.options.parsing import flatten, parse_options
from experiments.options.runs import FinetuneOptions
from experiments.options.signals import GracefulStop, Interrupted
from experiments.options.task_source import SOURCE
from experiments.runs.finetuning import run_finetune, save_weights
from experiments.runs.folder_lock import kept_folder
from experiments.runs.parts import find_task
from experiments.runs.run_folder import RunFolder
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.shipped import network_task
from quantenv.tasks import Task
from quantenv.training import FinetuneConfig


def main(arguments: Sequence[str]) -> int:
    """Fine-tunes one allocation, prints the result and saves it.

    Args:
        arguments: The command line after ``finetune``.

    Returns:
        Exit code: 0, 1 if training diverged, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options, or a damaged or foreign allocation.
    """
    options = parse_options(FinetuneOptions, "finetune", arguments)
    if options.run is not None:
        recipe = _recipe_of(RunFolder.open(options.run), options.task)
        options = parse_options(FinetuneOptions, "finetune", arguments, defaults=recipe)
        options = _without_other_numbers(options, recipe)
    source, allocation = _allocation(options)
    torch.set_num_threads(options.threads)
    name = network_task(_task_name(options, allocation))
    task = find_task(name, options.scheme or allocation.scheme or None, options.source, allocation)
    assert isinstance(task, Task)  # no name of a network is that of a table
    allocation = allocation.check_fits(task.layers)
    output = Path(options.output) if options.output else source.parent / "finetune"
    with kept_folder(output, "quantenv finetune", "the same command"):
        return _finetune(options, task, allocation, source, output)


def _finetune(options: FinetuneOptions, task: Task, allocation: Allocation, source: Path, output: Path) -> int:
    """Fine-tunes in a folder; see `main`."""
    checkpoint = output / "checkpoint.safetensors"
    try:
        with GracefulStop() as stop:
            result = run_finetune(task, allocation, options.qat, source.stem, None, stop, checkpoint)
    except Interrupted as interruption:
        announcements().print(f"Interrupted: the same command goes on from {checkpoint}.")
        return interruption.exit_code

    content = {
        "allocation": allocation.to_dict(),
        "scheme": task.scheme,
        "recipe": dataclasses.asdict(options.qat),
        "best_epoch": result.best_epoch,
        "diverged": result.diverged,
        "search": dataclasses.asdict(result.search),
        "test": dataclasses.asdict(result.test),
    }
    write_text(output / "finetune.json", json.dumps(content, indent=1) + "\n")
    save_weights(result, output / "finetuned.safetensors")
    checkpoint.unlink()
    say = results()
    done = "fine-tuned with quantization" if options.qat.epochs else "quantized and not trained (0 epochs)"
    if options.qat.epochs and result.remark is not None:
        done = "fine-tuned without success"
    say.print(
        f"{source}, {done}: test accuracy {result.test.accuracy:.2%} ({result.test.correct} of {result.test.samples}), "
        f"cross-entropy {result.test.loss:.4f}; best checkpoint on search: epoch {result.best_epoch} of "
        f"{options.qat.epochs}."
    )
    if options.qat.epochs and result.remark is not None:
        say.print(f"What happened: {result.remark}.")
    say.print(f"Saved finetune.json and finetuned.safetensors in {output}.")
    if options.run is not None and options.allocation is None:
        _compare_with_table(RunFolder.open(options.run), options.qat, result.test)
    return 1 if result.diverged else 0


def _recipe_of(folder: RunFolder, other_task: str | None) -> dict[str, object]:
    """Returns what a run fixes of the fine-tuning, by option; of another task not what the run's is made from."""
    options = folder.options()
    task = network_task(options.task)
    source = {name: getattr(options, name) for name in SOURCE} if other_task in (None, task) else {}
    recipe = {f"qat.{name}": value for name, value in flatten(options.qat).items()}
    return {**recipe, **source, "threads": options.threads, "task": task, "scheme": options.scheme}


def _without_other_numbers(options: FinetuneOptions, recipe: Mapping[str, object]) -> FinetuneOptions:
    """Leaves out the run's prepared network where it is fine-tuned under another scheme than the run's."""
    if options.prepared is None or options.prepared != recipe.get("prepared") or options.scheme == recipe["scheme"]:
        return options
    return dataclasses.replace(options, prepared=None)


def _allocation(options: FinetuneOptions) -> tuple[Path, Allocation]:
    if options.allocation is not None:
        path = Path(options.allocation)
    elif options.run is not None:
        path = RunFolder.open(options.run).best
    else:
        raise QuantenvError("Nothing to fine-tune: give --run FOLDER or --allocation FILE.")
    return path, Allocation.load(path)


def _task_name(options: FinetuneOptions, allocation: Allocation) -> str:
    name = options.task or allocation.task
    if not name:
        raise QuantenvError("The allocation file names no task: say which with --task; `quantenv tasks` lists them.")
    return name


def _compare_with_table(folder: RunFolder, recipe: FinetuneConfig, test: Evaluation) -> None:
    """Says whether the run's final table holds the same result."""
    if not folder.report.exists() or recipe != folder.options().qat:
        return
    row = folder.read_report().row("found", "QAT")
    if row is not None:
        same = (
            "The same as" if row.evaluation == test else f"Differs from ({row.accuracy:.2%}, {row.evaluation.loss:.4f})"
        )
        results().print(f"{same} the found row of the run's final table.")
