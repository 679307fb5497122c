"""`quantenv prepare`: makes, exports and checks prepared networks, the numbers that a task's evaluations stand on."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import torch

from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options
from experiments.options.tools import PrepareOptions
from experiments.runs.progress import ProgressView
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import bringing, check_key, find_prepared, make_prepared
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.shipped import resolve_task
from quantenv.quantization.prepared import PreparedNetwork, read_prepared, write_prepared
from quantenv.sensitivity.divergence import SHOWN, measured_sensitivity
from quantenv.sensitivity.kinds import Settings
from quantenv.sensitivity.network import identity_of, measured_outputs
from quantenv.tasks import Task


def main(arguments: Sequence[str]) -> int:
    """Prepares a task's network, or checks what was prepared.

    Args:
        arguments: The command line after ``prepare``.

    Returns:
        Exit code: 0, or 1 if other numbers come out than those that are checked.

    Raises:
        QuantenvError: For a mistake in the options, or a file that is damaged or of another task.
    """
    options = parse_options(PrepareOptions, "prepare", arguments)
    torch.set_num_threads(options.threads)
    task = resolve_task(options.task, options.source, options.scheme)
    if isinstance(task, EvaluationTable):
        raise QuantenvError(f"Table {options.task!r} holds evaluations, not a network: name task {task.task!r} itself.")
    if options.check is not None:
        return _check(task, Path(options.check))
    prepared = find_prepared(task)
    if options.sensitivities:
        prepared = with_sensitivities(task, prepared)
    say = results()
    about = prepared.about
    say.print(f"{about.task}, {about.scheme}: prepared network {prepared.content_hash}", highlight=False)
    for split, reference in about.references.items():
        share = f"{reference.correct} of {reference.samples}"
        say.print(f"Float network on {split}: {share} right, cross-entropy {reference.loss:.6f}", highlight=False)
    if options.output is not None:
        write_prepared(prepared, Path(options.output))
        say.print(f"Written: {options.output}", soft_wrap=True, highlight=False)
    return 0


def with_sensitivities(task: Task, prepared: PreparedNetwork) -> PreparedNetwork:
    """Measures a task's sensitivities and puts them beside its numbers, so that nobody else need measure them.

    They are those that observations show, and those of the kinds accuracy, loss, kl and sqnr at all bits, by the
    default evaluator and settings.

    Args:
        task: The task.
        prepared: Its prepared network, which they are measured with.
    """
    evaluator, settings = PTQEvaluator(bringing(task, prepared)), Settings()
    views: list[ProgressView] = []
    with ExitStack() as shown:

        def show(done: int, total: int, what: str) -> None:
            if not views:
                views.append(shown.enter_context(ProgressView(announcements(), "sensitivities", total)))
            views[0].show(done, what)

        found = measured_outputs(evaluator, settings, show)
    found[SHOWN] = measured_sensitivity(evaluator).tolist()
    measured = {**prepared.about.sensitivities, identity_of(evaluator, settings): found}
    return dataclasses.replace(prepared, about=msgspec.structs.replace(prepared.about, sensitivities=measured))


def differences(one: PreparedNetwork, other: PreparedNetwork) -> list[str]:
    """Says in what two prepared networks differ: a line for each tensor, with the largest difference."""
    lines = []
    for name in sorted(one.tensors.keys() | other.tensors.keys()):
        left, right = one.tensors.get(name), other.tensors.get(name)
        if left is None or right is None or left.shape != right.shape:
            lines.append(f"{name}: only one has it, or their shapes differ")
        elif not torch.equal(left, right):
            apart, size = (left.double() - right.double()).abs(), float(right.double().abs().max())
            most = f"{float(apart.max()):.3g}" + (f", {float(apart.max()) / size:.1e} of the largest" if size else "")
            lines.append(f"{name}: {int((apart != 0).sum())} of {left.numel()} numbers, by at most {most}")
    return lines


def _check(task: Task, path: Path) -> int:
    """Prepares anew and compares."""
    theirs = read_prepared(path)
    check_key(theirs, task)
    ours = make_prepared(dataclasses.replace(task, prepared=None))
    say = results()
    if ours.content_hash == theirs.content_hash:
        say.print(f"{path}: the same numbers come out here, {ours.content_hash}.", soft_wrap=True, highlight=False)
        return 0
    say.print(f"{path} is {theirs.content_hash}; here it comes out as {ours.content_hash}:", soft_wrap=True)
    for line in differences(ours, theirs):
        say.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    say.print("Float arithmetic differs between machines: give that file as --prepared to have its numbers here.")
    return 1
