"""`quantenv train --resume`: a run goes on with its own options, to its end or, with ``--evaluations``, beyond it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from agents import agent_class
from experiments.options.parsing import flatten, parse_options
from experiments.options.runs import TrainOptions
from experiments.runs.episodes import read_episodes
from experiments.runs.final_table import Report
from experiments.runs.run_folder import RunFolder
from quantenv.core.errors import QuantenvError

#: Options that fix no number, so that a run may be resumed with others.
OF_THE_MACHINE = ("store", "workers", "pool", "ray_address")
#: Options of agents that say how many episodes they play side by side.
TOGETHER = ("episodes_per_update", "episodes_per_batch")


def continued_options(arguments: Sequence[str], folder: RunFolder) -> TrainOptions:
    """Returns a run's own options with those that may be given anew.

    Args:
        arguments: The command line after ``train``, with ``--resume``.
        folder: The run's folder.

    Raises:
        QuantenvError: If an option that a run fixes is given and is another than the run's.
    """
    own = folder.options()
    kept = {name: value for name, value in flatten(own).items() if name not in ("resume", *OF_THE_MACHINE[1:])}
    given = parse_options(TrainOptions, "train", arguments, defaults=kept)
    was, now = flatten(own), flatten(given)
    free = ("resume", "evaluations", *OF_THE_MACHINE)
    other = [name for name in now if name not in free and now[name] != was[name]]
    if other:
        raise QuantenvError(
            f"--resume continues a run with its own options, so --{other[0]} cannot be given with it: "
            "leave it out, or start a new run."
        )
    return dataclasses.replace(given, resume=None)


def finished_report(folder: RunFolder, options: TrainOptions) -> Report | None:
    """Returns the final table of a run that has no evaluation left to do; None if it has."""
    if not folder.report.exists():
        return None
    report = folder.read_report()
    return report if report.complete and report.evaluations == options.evaluations else None


def extend(folder: RunFolder, evaluations: int, say: Console) -> None:
    """Gives a run more evaluations, unless it has as many: resumed, it is then what a run of so many would have been.

    A search of more evaluations begins alike, but for the last batch of the shorter one where that was cut short: its
    evaluations are taken off the record and played anew. What was made of the shorter search is removed first, so that
    an interruption at any moment leaves a run that can be resumed.

    Args:
        folder: The run's folder, which no other process writes.
        evaluations: Evaluations of the whole run.
        say: Where it is said what is played anew.

    Raises:
        QuantenvError: If the run has or is to have more already, or its agent plans by their number.
    """
    own = folder.options()
    if evaluations == own.evaluations:
        return
    if evaluations < own.evaluations:
        raise QuantenvError(
            f"--evaluations is {evaluations}, and {folder.path} is a run of {own.evaluations}: evaluations are never "
            "taken back. Give more of them to go on, or leave --evaluations out."
        )
    if getattr(agent_class(own.agent), "plans_ahead", False):
        raise QuantenvError(
            f"Agent {own.agent!r} divides all its evaluations up before the first one, so a run of {own.evaluations} "
            f"is not the beginning of one of {evaluations}: start a new run."
        )
    recorded, _ = read_episodes(folder.episodes)
    together = episodes_together(own.agent, own.agent_options)
    settled = max(0, own.evaluations - (together - 1))
    if len(recorded) > settled:
        lines = folder.episodes.read_bytes().splitlines(keepends=True)
        os.truncate(folder.episodes, sum(map(len, lines[:settled])))
        say.print(
            f"Agent {own.agent!r} plays up to {together} episodes side by side, and a longer search fills its last "
            f"batch: evaluations {settled + 1} to {len(recorded)} are made anew."
        )
    report = folder.report
    for path in (report, report.with_suffix(".md"), folder.top_k, folder.best, folder.agent, folder.finetuned):
        path.unlink(missing_ok=True)
    folder.write_options(dataclasses.replace(own, evaluations=evaluations))


def episodes_together(agent: str, options: Mapping[str, Any]) -> int:
    """Returns how many episodes an agent plays side by side at most, with some of its options given."""
    kind = agent_class(agent)
    defaults = {field.name: field.default for field in dataclasses.fields(kind.config_class)}
    fields: dict[str, Any] = {**defaults, **options}
    counts = [fields[name] for name in TOGETHER if name in fields]
    return int(counts[0] if counts else getattr(kind, "together", 1))
