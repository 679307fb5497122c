"""`quantenv.search` and `quantenv.resume`: `quantenv train` from Python, for registered tasks and your own."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.options.agents import resolved_options
from experiments.options.parsing import flatten, parse_options
from experiments.options.presets import preset_options
from experiments.options.runs import TrainOptions
from experiments.options.task_source import SOURCE, with_absolute_paths
from experiments.runs.continuing import extend
from experiments.runs.episodes import Episode
from experiments.runs.parts import check_fine_tuning, check_names, find_task
from experiments.runs.recorder import Listener
from experiments.runs.run_folder import RunFolder
from experiments.runs.running import run
from experiments.runs.searching import SearchResult, Setting, learn, prepared, result_of, torch_threads
from experiments.runs.top_k import TopK
from experiments.runs.transfer import check_source
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.evaluation.preparing import bringing
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.quantization.prepared import read_prepared
from quantenv.tasks import Task
from quantenv.training import FinetuneConfig
from quantenv.training.parallel import check_processes

#: What a task that is given as an object has decided already.
_OF_THE_TASK = ("scheme", *SOURCE)
#: Nothing is printed.
_SILENT = Console(quiet=True)


def search(
    task: str | Task | EvaluationTable = "digits",
    *,
    agent: str = "reinforce",
    metric: str | Sequence[str] = "size",
    budget: float | str | Mapping[str, float | str] = 0.4,
    evaluations: int = 500,
    seed: int = 0,
    qat: FinetuneConfig | Mapping[str, Any] | None = None,
    runs: str | Path | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    **options: Any,
) -> SearchResult:
    """Searches for the bits of every layer, as `quantenv train` does, without printing anything.

    Args:
        task: Name of a task or table, or a task of yours, such as `quantenv.tasks.task_from_datasets` makes.
        agent: Who searches; `quantenv agents` lists them.
        metric: What the budget bounds: size, bops, latency, energy or memory, or several.
        budget: Upper bound: a ratio of the cost at 8 bits, in (0, 1]; an absolute limit such as ``"18KiB"``; or several
            by metric.
        evaluations: Allocations that the agent may evaluate.
        seed: Fixes everything random in the search.
        qat: Recipe of fine-tuning, or options of it by name.
        runs: Folder in which to keep the run, with its final table, as <task>/<agent>/<seed>-<time>; by default nothing
            is kept.
        on_episode: Called with every evaluation.
        options: Further options of `quantenv train` by name, such as ``bits=[2, 4, 8]`` or ``device="generic"``.

    Returns:
        What was found, with ``.best``, ``.episodes``, ``.report``, ``.finetune()`` and ``.compare()``.

    Raises:
        QuantenvError: For a mistake in the arguments.
        InfeasibleBudgetError: If no allocation meets the budget.
    """
    given = {"agent": agent, "metric": metric, "budget": budget, "evaluations": evaluations, "seed": seed, **options}
    if qat is not None:
        recipe = flatten(qat) if isinstance(qat, FinetuneConfig) else dict(qat)
        given |= {f"qat.{name}": value for name, value in recipe.items()}
    if runs is not None:
        given["runs"] = str(runs)
    chosen = _options(task, given)
    filled = resolved_options(chosen.agent, chosen.task, chosen.agent_options)
    chosen = dataclasses.replace(with_absolute_paths(chosen), agent_options=filled)
    check_source(chosen)
    found = _found(task, chosen)
    listeners: list[Listener] = [] if on_episode is None else [on_episode]
    if runs is not None:
        return run(chosen, found, None, _SILENT, None, _warn, listeners)[0]
    episodes: list[Episode] = []
    with prepared(chosen, found) as setting:
        _warn(setting)
        top = TopK(chosen.top_k, setting.env.budgets)
        learn(setting, [top, episodes.append, *listeners])
        return result_of(setting, episodes, top, None)


def resume(
    folder: str | Path,
    task: Task | EvaluationTable | None = None,
    evaluations: int | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> SearchResult:
    """Continues a run in its folder, to its end or beyond it; what is recorded is replayed and not evaluated again.

    Args:
        folder: The run's folder.
        task: The task, if it is one of yours that was given as an object: the same as before.
        evaluations: Evaluations of the whole run, if they are to be more.
        on_episode: Called with every evaluation, those that are replayed as well.

    Raises:
        FolderInUseError: If another process writes the folder.
        QuantenvError: If the folder holds no run, or the task is not the one that it is of.
    """
    earlier = RunFolder.open(folder)
    with earlier.written_by("quantenv.resume"):
        extend(earlier, earlier.options().evaluations if evaluations is None else evaluations, _SILENT)
        options = earlier.options()
        found = _found(options.task if task is None else task, options)
        listeners: list[Listener] = [] if on_episode is None else [on_episode]
        return run(options, found, earlier, _SILENT, None, _warn, listeners)[0]


def _options(task: str | Task | EvaluationTable, given: dict[str, Any]) -> TrainOptions:
    """Returns options as the command line would fill them."""
    if not isinstance(task, str | Task | EvaluationTable):
        raise QuantenvError(
            f"A search is of a task's name, a Task or an EvaluationTable, not of {type(task).__name__}: "
            "`quantenv.tasks.task_from_datasets` makes a task of a network and two data sets."
        )
    names = [field.name for field in dataclasses.fields(TrainOptions) if field.name not in ("resume", "qat", "task")]
    for name in given:
        if not name.startswith("qat.") and name not in names:
            raise unknown_name("option of a search:", name, names)
    if not isinstance(task, str):
        decided = [name for name in _OF_THE_TASK if given.get(name) is not None]
        if decided:
            raise QuantenvError(f"The task is given whole, so {decided[0]!r} has no meaning here: make it part of it.")
    plain = {name: _plain(value) for name, value in given.items() if value is not None}
    plain["task"] = task if isinstance(task, str) else task.name
    preset = plain.get("preset")
    below = {} if preset is None else preset_options(preset, plain["metric"])
    try:
        return parse_options(TrainOptions, "train", [], {**below, **plain})
    except KeyError as error:
        raise unknown_name("option of a search:", error.args[0], flatten(TrainOptions())) from error


def _plain(value: Any) -> Any:
    """Returns what NumPy holds, and other sequences and mappings, as Python's own."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _found(task: str | Task | EvaluationTable, options: TrainOptions) -> Task | EvaluationTable:
    """Checks the options and makes the task, unless it is there."""
    check_names(options)
    check_processes(options.qat.processes, options.qat.compute)
    if isinstance(task, str):
        with torch_threads(options.threads):
            task = find_task(task, options.scheme, options.source)
    elif options.prepared is not None and isinstance(task, Task):  # that of the run's folder
        task = bringing(task, read_prepared(Path(options.prepared)))
    check_fine_tuning(options, task)
    return task


def _warn(setting: Setting) -> None:
    """Warns of what a user should know of the task."""
    for note in setting.notes:
        warnings.warn(note, stacklevel=4)
