"""A run's folder, ``<runs>/<task>/<agent>/<seed>-<time>/``: its files, and reading them with clear errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.options.parsing import read_options, write_options
from experiments.options.runs import TrainOptions
from experiments.runs.episodes import Episode, read_episodes
from experiments.runs.final_table import Report
from experiments.runs.folder_lock import kept_folder
from experiments.runs.provenance import Environment
from experiments.runs.top_k import TopKFile
from quantenv.core.errors import QuantenvError
from quantenv.core.records import read_record, write_record
from quantenv.evaluation.preparing import calibrate_task, ships
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.quantization.prepared import write_prepared
from quantenv.tasks import Task


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run's files; every file but `episodes` is written atomically."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved options; loads again with ``--config``."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, git revision, threads, CPU and the evaluator's identity."""
        return self.path / "environment.json"

    @property
    def episodes(self) -> Path:
        """One line of JSON for each evaluation."""
        return self.path / "episodes.jsonl"

    @property
    def top_k(self) -> Path:
        """The best allocations with their search results."""
        return self.path / "top_k.json"

    @property
    def best(self) -> Path:
        """The best allocation, an allocation file."""
        return self.path / "best.json"

    @property
    def agent(self) -> Path:
        """The trained agent."""
        return self.path / "agent.safetensors"

    @property
    def initial(self) -> Path:
        """The agent that the run started from, if it was another run's."""
        return self.path / "init.safetensors"

    @property
    def prepared(self) -> Path:
        """The prepared network that the run's numbers come from, unless it ships with quantenv."""
        return self.path / "prepared.safetensors"

    @property
    def finetuned(self) -> Path:
        """Weights of the fine-tuned best allocation, a state dict."""
        return self.path / "finetuned.safetensors"

    @property
    def finetuning(self) -> Path:
        """Folder of checkpoints that interrupted fine-tuning goes on from; gone once the run is finished."""
        return self.path / "finetuning"

    @property
    def report(self) -> Path:
        """The final table; `report.md` beside it is the same for reading."""
        return self.path / "report.json"

    @classmethod
    def create(cls, options: TrainOptions) -> "RunFolder":
        """Makes the folder of a new run and writes its config.

        Raises:
            QuantenvError: If the folder cannot be made.
        """
        task = options.task.replace(":", ".") if ":" in options.task else Path(options.task).stem
        parent = Path(options.runs) / task / options.agent
        stem = f"{options.seed}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(make_new(parent, stem))
            try:
                folder.write_options(options)
            except OSError:
                folder.path.rmdir()
                raise
        except OSError as error:
            raise QuantenvError(f"Cannot make a run folder in {parent}: {error.strerror}.") from error
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Opens an existing run's folder.

        Raises:
            QuantenvError: If it is missing or holds no run.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise QuantenvError(f"There is no run folder {path}; give one as `quantenv train` prints it.")
        if not folder.config.is_file():
            raise QuantenvError(f"{path} is not a run folder: it holds no {folder.config.name}.")
        return folder

    @contextmanager
    def written_by(self, command: str) -> Iterator[None]:
        """Keeps other processes from writing the folder meanwhile, and says how to go on if a disk fails.

        Raises:
            FolderInUseError: If another process writes it.
            DiskError: If a disk fails within.
        """
        with kept_folder(self.path, command, f"`quantenv train --resume {self.path}`"):
            yield

    def options(self) -> TrainOptions:
        """Reads the run's options; where the folder holds a prepared network, that is the one meant.

        Raises:
            QuantenvError: If the file was changed or damaged, or an option is unknown.
        """
        # Which cluster evaluates is for each command to say, and never for a folder.
        given: dict[str, Any] = {"ray_address": None}
        if self.prepared.exists():
            given["prepared"] = str(self.prepared.absolute())
        return read_options(TrainOptions, "train", self.config, given)

    def write_options(self, options: TrainOptions) -> None:
        """Writes the run's options, with a checksum in a comment."""
        write_options(self.config, options, "train", "run")

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Writes one of the run's JSON files with a checksum, atomically."""
        write_record(path, content)

    def keep_prepared(self, task: Task | EvaluationTable) -> None:
        """Keeps a copy of a task's prepared network, unless it ships: the run then has the same numbers everywhere."""
        if isinstance(task, Task):
            prepared = calibrate_task(task).prepared
            if prepared is not None and not ships(prepared, task):
                write_prepared(prepared, self.prepared)

    def read_episodes(self) -> list[Episode]:
        """Reads all episodes of a run that is not going on.

        Raises:
            QuantenvError: If a line is damaged, or there are fewer than the final table counts.
        """
        episodes, _ = read_episodes(self.episodes)
        counted = self.read_report().evaluations if self.report.exists() else 0
        if len(episodes) < counted:
            raise QuantenvError(
                f"{self.episodes} holds {len(episodes)} evaluations, and {self.report.name} counts {counted}: lines "
                "are missing at its end. Restore it."
            )
        return episodes

    def read_environment(self) -> Environment:
        """Reads `environment.json`; raises QuantenvError if it is missing, changed or damaged, as the next two do."""
        return read_record(self.environment, Environment)

    def read_top_k(self) -> TopKFile:
        """Reads `top_k.json`."""
        return read_record(self.top_k, TopKFile)

    def read_report(self) -> Report:
        """Reads `report.json`."""
        report = read_record(self.report, Report)
        try:
            return report.check()
        except QuantenvError as error:
            raise QuantenvError(f"The file {self.report} is not sound: {error}") from error


def make_new(parent: Path, stem: str) -> Path:
    """Makes and returns `parent/stem`, or the first free `parent/stem-2`, `-3`, ..."""
    number = 1
    while True:
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
