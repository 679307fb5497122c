"""The worked example of an agent from another distribution, installed as its users would install it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agents
from agents.base import Agent
from experiments.cli.main import main
from quantenv.core.errors import QuantenvError
from tests.agents.searches import make_env
from tests.experiments.conftest import run_train
from tests.synthetic_table import synthetic_table

EXAMPLE = Path(__file__).parent.parent / "third_party_agent"


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([*command, *options, str(source)], check=True)
    return folder / "site"


@pytest.fixture
def installed(distribution, monkeypatch):
    monkeypatch.syspath_prepend(str(distribution))
    yield
    sys.modules.pop("hill_climber", None)


def test_it_is_not_there_before_it_is_installed():
    with pytest.raises(QuantenvError, match="Unknown agent 'hill-climber'"):
        agents.agent_class("hill-climber")


@pytest.mark.usefixtures("installed")
def test_it_is_registered_and_listed(capsys):
    assert "hill-climber" in agents.agent_names()
    assert agents.describe()["hill-climber"] == "Tries random changes of one decision of the best allocation so far."
    assert main(["agents", "--agent=hill-climber"]) == 0
    assert "neighbours" in capsys.readouterr().out
    agent: Agent = agents.make_agent("hill-climber", make_env(), 3, {"neighbours": 2})
    assert agent.name == "hill-climber"
    with pytest.raises(QuantenvError, match=r"Unknown option of agent 'hill-climber' 'neighbors'. Did you mean"):
        agents.make_agent("hill-climber", make_env(), 3, {"neighbors": 2})


@pytest.mark.usefixtures("installed")
def test_it_trains_and_resumes_like_any_other(tmp_path):
    table = synthetic_table(4)
    table.save(tmp_path / "mine.npz")
    arguments = ("--evaluations=40", "--budget=0.5", "--agent_options.neighbours=3")
    run = run_train(tmp_path / "runs", f"--task={tmp_path / 'mine.npz'}", "--agent=hill-climber", *arguments)
    episodes = (run / "episodes.jsonl").read_bytes()
    assert len(episodes.splitlines()) == 40

    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for path in copy.iterdir():
        if path.name not in ("config.yaml", "environment.json"):
            path.unlink()
    (copy / "episodes.jsonl").write_bytes(b"".join(episodes.splitlines(keepends=True)[:17]))
    assert main(["train", f"--resume={copy}"]) == 0
    for name in ("episodes.jsonl", "report.json", "best.json"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()
    assert main(["validate", str(run), "--all"]) == 0
