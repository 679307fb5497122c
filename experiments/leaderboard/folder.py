"""A benchmark's folder: a part for each finished search while it runs, and the Parquet file of all of them.

| file | content |
|---|---|
| `suite.yaml` | the options; run them again with `quantenv benchmark --config` |
| `environment.json` | versions, git revision, CPU |
| `parts/*.parquet` | one finished search each, with its own description; what a benchmark continues from |
| `evaluations.parquet` | every evaluation of every search |
| `*.parquet.sha256` | the checksum of the file beside it |
| `jobs.json` | for each search: options of the agent, wall time, hash of all it depends on |
| `leaderboard.json`, `leaderboard.md`, `curves.json` | what follows from them |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from experiments.leaderboard.jobs import Record
from experiments.leaderboard.parquet import (
    COLUMNS,
    DamagedFile,
    read_description,
    read_table,
    write_table,
    write_tables,
)
from experiments.leaderboard.schemas import CurvesFile, Description, JobsFile, LeaderboardFile
from experiments.leaderboard.suite import BenchmarkOptions, Job
from experiments.options.parsing import read_options, write_options
from experiments.runs.provenance import Environment
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.reading import MIB, fit
from quantenv.core.records import read_record, write_record

JOBS_LIMIT = 64 * MIB
"""Bytes of `jobs.json`, which has some 700 for each search."""


@dataclass(frozen=True)
class BenchmarkFolder:
    """Paths and files of one benchmark; every file is written atomically."""

    path: Path

    @property
    def suite(self) -> Path:
        """The options."""
        return self.path / "suite.yaml"

    @property
    def environment(self) -> Path:
        """What the numbers depend on besides."""
        return self.path / "environment.json"

    @property
    def parts(self) -> Path:
        """Folder of the finished searches."""
        return self.path / "parts"

    @property
    def evaluations(self) -> Path:
        """Every evaluation."""
        return self.path / "evaluations.parquet"

    @property
    def jobs(self) -> Path:
        """A description of every search."""
        return self.path / "jobs.json"

    @property
    def leaderboard(self) -> Path:
        """The leaderboard; `leaderboard.md` beside it is the same for reading."""
        return self.path / "leaderboard.json"

    @property
    def curves(self) -> Path:
        """The anytime curves."""
        return self.path / "curves.json"

    @classmethod
    def open(cls, path: str | Path) -> "BenchmarkFolder":
        """Opens a finished benchmark.

        Raises:
            QuantenvError: If there is none.
        """
        folder = cls(Path(path))
        for file in (folder.suite, folder.evaluations, folder.jobs, folder.leaderboard):
            if not file.is_file():
                raise QuantenvError(
                    f"{path} holds no finished benchmark: {file.name} is missing. Run `quantenv benchmark --output "
                    f"{path}` to the end."
                )
        return folder

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a benchmark, finished or not, is in a folder."""
        return (Path(path) / "suite.yaml").is_file()

    def options(self) -> BenchmarkOptions:
        """Reads the options.

        Raises:
            QuantenvError: If the file was changed or damaged.
        """
        return read_options(BenchmarkOptions, "benchmark", self.suite, {})

    def write_options(self, options: BenchmarkOptions) -> None:
        """Writes the options, with a checksum in a comment."""
        write_options(self.suite, options, "benchmark", "benchmark")

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Writes a JSON file with its checksum; what it holds must be finite or None."""
        write_record(path, content)

    def read_environment(self) -> Environment:
        """Reads `environment.json`; raises QuantenvError if it is missing or damaged, as all readers here do."""
        return read_record(self.environment, Environment)

    def read_jobs(self) -> list[Description]:
        """Reads `jobs.json`."""
        return read_record(self.jobs, JobsFile, limit=JOBS_LIMIT).jobs

    def read_leaderboard(self) -> dict[str, Any]:
        """Reads `leaderboard.json`: content that fits `LeaderboardFile`."""
        content: dict[str, Any] = msgspec.to_builtins(read_record(self.leaderboard, LeaderboardFile))
        return content

    def read_curves(self) -> dict[str, Any]:
        """Reads `curves.json`: content that fits `CurvesFile`."""
        content: dict[str, Any] = msgspec.to_builtins(read_record(self.curves, CurvesFile))
        return content

    # Parts ------------------------------------------------------------------------------------------------

    def part(self, job: Job) -> Path:
        """Returns where a search's part lies."""
        # A task may be a path; the hash keeps two of the same stem apart.
        stem = f"{Path(job.task).stem}-{content_hash([job.task])[:4]}"
        return self.parts / f"{stem}-{job.metric}-{job.budget:g}-{job.agent}-{job.seed}.parquet"

    def write_part(self, job: Job, key: str, record: Record) -> None:
        """Writes a finished search.

        Args:
            job: The search.
            key: Hash of what it depends on.
            record: What it evaluated.
        """
        description = {
            **asdict(job),
            "key": key,
            "config": dict(record.config),
            "evaluator_identity": record.evaluator_identity,
            "equivalent_evaluations": record.equivalent_evaluations,
            "environment_seconds": record.environment_seconds,
            "agent_seconds": record.agent_seconds,
        }
        write_table(self.part(job), _columns(job, record), description)

    def key_of(self, job: Job) -> str | None:
        """Returns the hash that a search's part was made under; None if there is no part.

        Raises:
            DamagedFile: If the part is damaged.
        """
        path = self.part(job)
        return _description(path, job)["key"] if path.exists() else None

    def merge(self, jobs: Sequence[Job]) -> None:
        """Writes `evaluations.parquet` and `jobs.json` from the parts, in the order of the jobs.

        Raises:
            DamagedFile: If a part is damaged.
        """
        write_tables(self.evaluations, (read_table(self.part(job)) for job in jobs))
        descriptions = [_description(self.part(job), job) for job in jobs]
        self.write_json(self.jobs, {"format": "quantenv-jobs-1", "jobs": descriptions})

    def read_evaluations(self, columns: Iterable[str] = tuple(COLUMNS)) -> Any:
        """Reads columns of `evaluations.parquet` as an Arrow table.

        Raises:
            QuantenvError: If the file is damaged.
        """
        try:
            return read_table(self.evaluations, columns)
        except DamagedFile as error:
            raise QuantenvError(f"{error} Run the benchmark again, which makes it from the parts.") from error


def _description(path: Path, job: Job) -> dict[str, Any]:
    """Reads what a search's part says of itself.

    Raises:
        DamagedFile: If it is damaged or of another search.
    """
    content = read_description(path)
    fit(content, Description, f"The description in {path}", DamagedFile)
    if any(content[name] != getattr(job, name) for name in ("task", "metric", "budget", "agent", "seed")):
        raise DamagedFile(f"{path} is of another search than its name says.")
    return content


def _columns(job: Job, record: Record) -> Mapping[str, Any]:
    count = len(record.bits)
    same: Callable[[Any], list[Any]] = lambda value: [value] * count  # noqa: E731
    return {
        "task": same(job.task),
        "metric": same(job.metric),
        "budget": same(job.budget),
        "agent": same(job.agent),
        "seed": same(job.seed),
        "evaluation": np.arange(1, count + 1, dtype=np.int32),
        "bits": list(record.bits),
        "correct": record.correct,
        "samples": same(record.samples),
        "loss": record.loss,
        "cost": record.cost,
        "feasible": record.feasible,
        "reward": record.reward,
        "regret": record.regret,
        "sampling_error": same(record.sampling_error),
    }
