"""Tasks of the user's own through the whole pipeline: a distribution with an entry point, and a function by name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.main import main
from quantenv.core.errors import QuantenvError
from quantenv.tasks import get_task, task_descriptions, task_names
from tests.experiments.conftest import run_train

EXAMPLE = Path(__file__).parent.parent / "third_party_task"
BRIEFLY = ("--evaluations=4", "--budget=0.5", "--agent=random", "--qat.epochs=1", "--store=off")


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([*command, *options, str(source)], check=True)
    return folder / "site"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module `tasks_of_mine` into the present folder, which is not on the path."""
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield lambda text: (tmp_path / "tasks_of_mine.py").write_text(text)
    sys.modules.pop("tasks_of_mine", None)


def test_it_is_not_there_before_it_is_installed():
    with pytest.raises(QuantenvError, match=r"Unknown task 'rings'\."):
        get_task("rings")


def test_a_distribution_s_task_is_listed_and_goes_through_the_pipeline(distribution, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(distribution))
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    assert task_names()[-1] == "rings"
    assert task_descriptions()["rings"] == "rings:make_task of distribution 'quantenv-rings'"
    assert main(["tasks"]) == 0
    assert "quantenv-rings" in capsys.readouterr().out
    assert get_task("rings") is get_task("rings")
    run = run_train(tmp_path / "runs", "--task=rings", *BRIEFLY)
    assert run.parent.parent.name == "rings"
    report = json.loads((run / "report.json").read_text())
    assert [row["stage"] for row in report["rows"]].count("QAT") == 2
    for command in (
        ["validate", str(run), "--all"],
        ["finetune", f"--run={run}", "--qat.epochs=0"],
        ["finetune", f"--allocation={run / 'best.json'}", f"--output={tmp_path / 'again'}", "--qat.epochs=1"],
        ["tasks", "--task=rings"],
        ["sensitivity", "--task=rings"],
        ["report", str(run), f"--output={tmp_path / 'report.html'}"],
    ):
        assert main(command) == 0, command
    sys.modules.pop("rings", None)


def test_a_function_in_this_folder_is_a_task(module, tmp_path, capsys):
    module((EXAMPLE / "rings.py").read_text())
    run = run_train(tmp_path / "runs", "--task=tasks_of_mine:make_task", *BRIEFLY, "--workers=2", "--qat.epochs=0")
    report = json.loads((run / "report.json").read_text())
    assert "QAT" not in json.dumps((report["rows"], report["verdicts"]))  # nothing was trained
    assert run.parent.parent.name == "tasks_of_mine.make_task"
    assert json.loads((run / "best.json").read_text())["task"] == "tasks_of_mine:make_task"
    assert main(["finetune", f"--allocation={run / 'best.json'}", "--qat.epochs=1"]) == 0
    assert main(["validate", str(run), "--all"]) == 0


@pytest.mark.parametrize(
    ("text", "task", "sentence"),
    [
        ("", "nothing_of_mine:make", "Cannot import task 'nothing_of_mine:make': No module named"),
        ("", "tasks_of_mine:make", "Cannot import task 'tasks_of_mine:make': module 'tasks_of_mine' has no attribute"),
        (
            "1 / 0",
            "tasks_of_mine:make",
            "Cannot import .*: ZeroDivisionError: division by zero .tasks_of_mine.py, line 1",
        ),
        ("def make(", "tasks_of_mine:make", "Cannot import .*: SyntaxError: '.' was never closed"),
        ("make = 3", "tasks_of_mine:make", "is a int; expected a function"),
        ("def make(): return 3", "tasks_of_mine:make", "returned a int; expected a quantenv.tasks.Task"),
        ("def make():\n return {}[3]", "tasks_of_mine:make", "cannot be made: KeyError: 3 .tasks_of_mine.py, line 2"),
        ("def make(x): pass", "tasks_of_mine:make", "cannot be made: TypeError: make.. missing 1 required"),
        ("", "tasks_of_mine:", "Unknown task 'tasks_of_mine:'"),
        ("", "ring", "Unknown task 'ring'"),
    ],
)
def test_mistakes_are_one_sentence(module, text, task, sentence, refused):
    module(text)
    assert re.search(sentence, refused("tasks", f"--task={task}"))


def test_an_own_task_takes_no_data_of_others(module, refused):
    module((EXAMPLE / "rings.py").read_text())
    assert "takes no --data" in refused("tasks", "--task=tasks_of_mine:make_task", "--data=x")
