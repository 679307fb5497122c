"""A small finished benchmark over a synthetic table, and a runner of searches in this process."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import benchmark as command
from experiments.cli.main import main
from experiments.leaderboard import replay
from experiments.leaderboard.workers import attempt
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(5, groups=[[0, 3], [1], [2, 4]], bits=(2, 4, 6, 8), samples=200)
AGENTS = ("random", "reinforce")
ARGUMENTS = (
    f"--agents=[{','.join(AGENTS)}]",
    "--budgets=[0.5,0.7]",
    "--seeds=3",
    "--evaluations=12",
    "--checkpoints=[4,12]",
    "--resamples=200",
    '--agent_options={"reinforce": {"hidden": 8, "layers": 1}}',
)


def serial(jobs, workers, pool, stop, store=None):
    """Stands in for `run_all`: starting processes takes seconds."""
    for job in jobs:
        yield job, attempt(job, store)
        stop.check()


def run_benchmark(table_file: Path, output: Path, *arguments: str) -> Path:
    """Runs the small benchmark into a folder."""
    assert main(["benchmark", f"--tasks=[{table_file}]", *ARGUMENTS, f"--output={output}", *arguments]) == 0
    return output


@pytest.fixture(scope="session")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    TABLE.save(path)
    return path


@pytest.fixture
def in_process(monkeypatch):
    """Lets searches run in this process."""
    monkeypatch.setattr(command, "run_all", serial)
    monkeypatch.setattr(replay, "run_all", serial)


@pytest.fixture(scope="session")
def benchmark(table_file, tmp_path_factory) -> Path:
    """The folder of a finished benchmark, run in this process; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_all", serial)
        return run_benchmark(table_file, tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def benchmark_copy(benchmark, tmp_path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(benchmark, tmp_path / "copy"))


def repeatable(folder: Path) -> dict:
    """What must be the same whenever the same suite is run: all but clocks, the folder and the number of workers."""
    leaderboard = json.loads((folder / "leaderboard.json").read_text())
    del leaderboard["timing"], leaderboard["checksum"]
    for name in ("workers", "output", "pool"):
        del leaderboard["suite"][name]
    jobs = json.loads((folder / "jobs.json").read_text())["jobs"]
    for job in jobs:
        del job["environment_seconds"], job["agent_seconds"]
    return {
        "leaderboard": leaderboard,
        "jobs": jobs,
        "evaluations": (folder / "evaluations.parquet").read_bytes(),
        "curves": (folder / "curves.json").read_bytes(),
    }
