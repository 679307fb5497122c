"""`make results`: makes every recorded file that is stale, in order, and goes on where it was stopped.

`experiments.studies.recorded_files` lists them and what they depend on; ``experiments/studies/results/inputs.json``
holds the hashes of what each was made from, written after its command has succeeded. A command that was stopped is
given again with the folder that it had, as long as its inputs are the same, so that those that can go on do.
"""

import datetime
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.options.console import announcements
from experiments.options.console import results as output
from experiments.options.parsing import parse_options
from experiments.options.signals import EndAtOnce, end_at_once
from experiments.runs.folder_lock import kept_folder
from experiments.runs.provenance import environment
from experiments.studies.recorded import DATA_VARIABLE, Recorded, located
from experiments.studies.recorded_files import RECORDED, RESULTS
from experiments.studies.recorded_inputs import (
    Inputs,
    Making,
    Place,
    file_hash,
    read_inputs,
    stale,
    with_making,
    write_inputs,
)
from experiments.studies.recorded_runs import CommandFailed, obstacle, run
from experiments.studies.source_tree import SourceTree
from quantenv.core.errors import QuantenvError, unknown_name

NAME = "results"
ROOT = Path(__file__).parents[2]
#: What the files were made from, and where commands work, from the root.
INPUTS, WORK = f"{RESULTS}/inputs.json", "runs/results"


@dataclass(frozen=True)
class ResultsOptions:
    """Makes the recorded files that are stale, in order; what was stopped goes on.

    Stale is what was made from other code, data, files or options than lie here now.
    """

    check: bool = False
    """Make nothing; say what is stale and which of its inputs moved. Exit code 1 if anything is."""
    list: bool = False
    """Make nothing; list all results, what each takes, and its command."""
    only: str = ""
    """Results to make, as bench_correction,regret; all by default. What they read is taken as it is."""
    again: bool = False
    """Make those of --only although they are fresh."""
    keep: str = ""
    """Results whose inputs moved without moving a number, as bench_qat,regret: they count as fresh from now on."""
    because: str = ""
    """How you know that, for --keep; it is written down."""

    def __post_init__(self) -> None:
        if bool(self.keep) != bool(self.because.strip()):
            raise QuantenvError("--keep and --because belong together: which results, and how you know.")
        if self.again and not self.only:
            raise QuantenvError("--again needs --only: what is to be made again.")


def main(arguments: Sequence[str], root: Path = ROOT, table: Sequence[Recorded] = RECORDED) -> int:
    """Makes, checks or lists results.

    Args:
        arguments: The command line.
        root: Folder of the repository.
        table: The results.

    Returns:
        Exit code: 0; 1 if something is stale in the end.

    Raises:
        QuantenvError: For a mistake in the options, or if the record is damaged.
    """
    options = parse_options(ResultsOptions, NAME, arguments)
    chosen, kept = _chosen(options.only, table), _chosen(options.keep, table)
    folder = os.environ.get(DATA_VARIABLE)
    place = Place(root, SourceTree(root), Path(folder) if folder else None)
    known = read_inputs(root / INPUTS, table)
    if options.list:
        _list(table, known)
        return 0
    if options.check:
        reasons = stale(place, table, known)
        for name, moved in reasons.items():
            output().print(f"{name} is stale: {', '.join(moved)}.", markup=False, highlight=False, soft_wrap=True)
        return 1 if reasons else 0
    with kept_folder(root / WORK, "make results", "the same command"):
        if kept:
            return _keep(place, kept, known, options.because)
        return _make(place, table, known, options.only != "", chosen, options.again)


def _chosen(names: str, table: Sequence[Recorded]) -> list[Recorded]:
    """Returns the results of a list of names, or of a name and what it is the first word of; all without one."""
    by_name = {recorded.name: recorded for recorded in table}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    found: dict[str, Recorded] = {}
    for name in wanted:
        several = {full: recorded for full, recorded in by_name.items() if full == name or full.startswith(f"{name} ")}
        if not several:
            raise unknown_name("result", name, by_name)
        found |= several
    return list(found.values())


def _list(table: Sequence[Recorded], known: Inputs) -> None:
    for recorded in table:
        making = known.made.get(recorded.name)
        minutes = recorded.minutes if making is None else making.seconds / 60
        name = "quantenv" if recorded.arguments[:2] == ("-m", "experiments.cli.main") else "python -m"
        words = recorded.arguments[2:] if name == "quantenv" else recorded.arguments[1:]
        output().print(
            f"{minutes:6.1f} min  {recorded.name}: {name} {' '.join(words)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _keep(place: Place, kept: Sequence[Recorded], known: Inputs, because: str) -> int:
    """Takes the inputs of some results as they are now for those that they were made from."""
    for recorded in kept:
        if recorded.name not in known.made:
            raise QuantenvError(
                f"What {recorded.name!r} was made from is not known: make it, --only {recorded.name!r}."
            )
        if any(file_hash(located(place.root, name)) != known.files.get(name) for name in recorded.files):
            raise QuantenvError(
                f"The files of {recorded.name!r} are not as they were made: restore them, or make them."
            )
        making, today = known.made[recorded.name], datetime.datetime.now(datetime.UTC).date().isoformat()
        inputs = {**_of_data(making.inputs), **place.inputs(recorded)}
        changed = Making(
            making.command,
            inputs,
            making.date,
            making.seconds,
            making.machine,
            making.revision,
            [*making.kept, f"{today}: {because.strip()}"],
        )
        known = with_making(known, recorded, changed, {})
    write_inputs(place.root / INPUTS, known)
    return 0


def _of_data(inputs: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in inputs.items() if name.startswith("data ")}


def _make(
    place: Place, table: Sequence[Recorded], known: Inputs, asked: bool, chosen: Sequence[Recorded], again: bool
) -> int:
    """Makes what is stale of the chosen results, or of all; see `main`."""
    say = _sayer()
    outdated: set[str] = set()
    left: list[str] = []
    for recorded in table:
        moved = place.moved(recorded, known)
        inputs = [f"{name} is stale" for name in recorded.reads if name in outdated]
        reasons = moved or ([] if asked else inputs)
        if asked and recorded in chosen and not reasons:
            say(f"{recorded.name} is fresh.")
            reasons = ["again"] if again else []
        if reasons and (recorded in chosen or not asked):
            hindrance = obstacle(recorded, place.root, place.data)
            if hindrance is None and inputs and not asked:
                hindrance = f"{', '.join(inputs)} and could not be made"
            if hindrance is None:
                say(f"{recorded.name}: {', '.join(reasons)}.")
                try:
                    known = _made(place, recorded, table, known)
                    continue
                except CommandFailed as error:
                    hindrance = str(error)
            say(f"{recorded.name} is left out: {hindrance}.")
            left.append(recorded.name)
        if moved or inputs:
            outdated |= set(recorded.files)
    if left:
        say(f"Left out: {', '.join(left)}.")
    return 1 if left else 0


def _made(place: Place, recorded: Recorded, table: Sequence[Recorded], known: Inputs) -> Inputs:
    """Runs a result's command and writes down what it was made from; see `experiments.studies.recorded_runs.run`."""
    inputs, started = place.inputs(recorded), time.perf_counter()
    sharing = [other for other in table if set(other.files) & set(recorded.files)]
    anew = all(place.moved(other, known) and obstacle(other, place.root, place.data) is None for other in sharing)
    command = run(recorded, place.root, place.root / WORK, inputs, anew)
    about = environment("", 1)
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "numpy"))
    making = Making(
        command=command,
        inputs=inputs,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(time.perf_counter() - started, 1),
        machine=f"{about['cpu']}, {os.cpu_count()} cores; Python {about['python']}, {versions}",
        revision=about["git_revision"],
    )
    files = {name: file_hash(located(place.root, name)) or "" for name in recorded.files}
    known = with_making(known, recorded, making, files)
    write_inputs(place.root / INPUTS, known)
    return known


def _sayer() -> Callable[[str], None]:
    console = announcements()
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _main() -> int:
    end_at_once()
    try:
        return main(sys.argv[1:])
    except QuantenvError as error:
        sys.stderr.write(f"results: {error}\n")
        return 2
    except EndAtOnce as interruption:
        sys.stderr.write("results: interrupted. The same command goes on.\n")
        return interruption.exit_code


if __name__ == "__main__":
    sys.exit(_main())
