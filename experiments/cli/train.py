"""`quantenv train`: search with an agent, fine-tune the best allocation, compare it with the best uniform one.

`main` opens a new or an earlier run; the search itself is told in `experiments.runs.searching`, what is kept of it in
`experiments.runs.running`.
"""

import dataclasses
from collections.abc import Sequence

import torch

from experiments.options.agents import resolved_options
from experiments.options.console import announcements, results
from experiments.options.presets import parse_train_options
from experiments.options.runs import TrainOptions
from experiments.options.signals import GracefulStop
from experiments.options.task_source import with_absolute_paths
from experiments.runs.continuing import continued_options, extend, finished_report
from experiments.runs.final_table import Report, print_report
from experiments.runs.found import allocation_lines, next_commands
from experiments.runs.parts import check_fine_tuning, check_names, find_task
from experiments.runs.run_folder import RunFolder
from experiments.runs.running import run
from experiments.runs.searching import Setting
from experiments.runs.transfer import check_source
from quantenv.training.parallel import check_processes


def main(arguments: Sequence[str]) -> int:
    """Runs or resumes a search.

    Args:
        arguments: The command line after ``train``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options or a damaged run folder.
    """
    options = parse_train_options(arguments)
    if options.resume is None:
        check_names(options)
        check_source(options)
        return train(with_resolved(options), None)
    folder = RunFolder.open(options.resume)
    options = continued_options(arguments, folder)
    if (report := finished_report(folder, options)) is not None:
        announcements().print(f"{folder.path} is finished; this is its table.")
        _show(report, folder)
        return 0
    with folder.written_by("quantenv train --resume"):
        extend(folder, options.evaluations, announcements())
        return train(options, folder)


def train(options: TrainOptions, earlier: RunFolder | None) -> int:
    """Searches, fine-tunes, compares and prints.

    Args:
        options: What to run.
        earlier: The run folder to continue, whose options these are; None starts a new one.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.
    """
    say = announcements()
    check_names(options)
    check_processes(options.qat.processes, options.qat.compute)
    say.print(f"Preparing task {options.task!r} with {options.threads} thread{'s' * (options.threads > 1)}.")
    torch.set_num_threads(options.threads)  # before a network is prepared
    task = find_task(options.task, options.scheme, options.source)
    check_fine_tuning(options, task)

    def begin(setting: Setting) -> None:
        for note in setting.notes:
            say.print(note)

    result, interruption = run(options, task, earlier, say, GracefulStop(), begin)
    assert result.folder is not None  # which `run` always makes
    _show(result.report, result.folder)
    if interruption is None:
        return 0
    say.print(
        f"Interrupted after {len(result.episodes)} of {options.evaluations} evaluations, before fine-tuning was "
        f"done. Continue with: quantenv train --resume {result.folder.path}"
    )
    return interruption.exit_code


def with_resolved(options: TrainOptions) -> TrainOptions:
    """Fills in the agent's options for the task and whole paths, so that the run's config.yaml holds them."""
    filled = resolved_options(options.agent, options.task, options.agent_options)
    return dataclasses.replace(with_absolute_paths(options), agent_options=filled)


def _show(report: Report, folder: RunFolder) -> None:
    """Prints the table, what was found layer by layer, where that lies and what can be done with it."""
    say = results()
    print_report(report, say)
    lines = allocation_lines(report, say.width, plain=not say.encoding.startswith("utf"))
    if not lines:
        return
    say.print()
    for line in lines:
        say.print(line, markup=False, soft_wrap=True)
    say.print(f"\nThe allocation found: {folder.best}. Next:", markup=False, soft_wrap=True)
    if report.complete:
        for command in next_commands(str(folder.path), report.row("found", "QAT") is not None):
            say.print(f"  {command}", markup=False, soft_wrap=True)
    else:
        say.print(f"  quantenv train --resume {folder.path}", markup=False, soft_wrap=True)
