"""A report of a small benchmark and of two runs on the same synthetic table, and a reader of pages."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.cli import benchmark as command
from experiments.cli.main import main
from tests.experiments.conftest import run_train
from tests.experiments.leaderboard.conftest import TABLE, run_benchmark, serial


class Page(HTMLParser):
    """What a page holds, read without a browser."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.tags, self.figures, self.scripts, self.texts = path, [], {}, [], []
        self._script = None
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._script = dict(attributes)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.texts.append(data)
        elif self._script.get("type") == "application/json":
            key = self._script["id"].removeprefix("data-")
            self.figures[key] = self.figures.get(key, "") + data
        else:
            self.scripts.append(data)

    def figure(self, start):
        """The one figure whose key begins so."""
        (key,) = [key for key in self.figures if key.startswith(start)]
        return json.loads(self.figures[key])

    def trace(self, start, name):
        """The one trace of this name that has an entry in the legend."""
        traces = self.figure(start)["data"]
        (trace,) = [trace for trace in traces if trace["name"] == name and trace.get("showlegend", True)]
        return trace


def make_report(output: Path, *arguments: str) -> Page:
    """Runs the command and reads its page."""
    assert main(["report", *arguments, "--output", str(output)]) == 0
    return Page(output)


@pytest.fixture(scope="session")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    TABLE.save(path)
    return path


@pytest.fixture(scope="session")
def benchmark_folder(table_file, tmp_path_factory):
    """A finished benchmark: random and reinforce, budgets 0.5 and 0.7, three seeds, 12 evaluations; not to change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_all", serial)
        return run_benchmark(table_file, tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="session")
def runs(table_file, tmp_path_factory):
    """Two finished runs of random on the table under budget 0.5, seeds 0 and 1; not to change."""
    folder = tmp_path_factory.mktemp("runs")
    common = (f"--task={table_file}", "--agent=random", "--budget=0.5", "--evaluations=20")
    return [run_train(folder, *common, f"--seed={seed}") for seed in range(2)]


@pytest.fixture
def run_copy(runs, tmp_path):
    """A copy of the first run, to be changed at will."""
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


@pytest.fixture(scope="session")
def report(benchmark_folder, runs, tmp_path_factory):
    """The page of all of them."""
    output = tmp_path_factory.mktemp("report") / "mine.html"
    return make_report(output, str(benchmark_folder), *map(str, runs))


@pytest.fixture
def benchmark_copy(benchmark_folder, tmp_path):
    """A copy of the benchmark, to be changed at will."""
    return Path(shutil.copytree(benchmark_folder, tmp_path / "copy"))
