"""One short finished run, shared: tests that change a run folder work on a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.runs import tensorboard
from tests.digits import FEW_DIGITS

#: A run that takes about two seconds.
SHORT = (
    "--evaluations=40",
    "--qat.epochs=1",
    "--agent_options.hidden=16",
    "--agent_options.layers=1",
    "--top_k=3",
    f"--task={FEW_DIGITS}",
)


def run_train(runs: Path, *arguments: str) -> Path:
    """Trains in-process and returns the run folder."""
    before = set(runs.glob("*/*/*"))
    assert main(["train", f"--runs={runs}", *arguments]) == 0
    (folder,) = set(runs.glob("*/*/*")) - before
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out drawing, which takes as long as a short search: `test_tensorboard` and `finished` do draw."""
    monkeypatch.setattr(tensorboard, "figure_pixels", lambda _figure: np.zeros((1, 1, 3), np.uint8))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished REINFORCE run on a few digits; not to be changed."""
    return run_train(tmp_path_factory.mktemp("runs"), *SHORT)


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged at will."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with exit code 2 and one sentence on stderr; returns the sentence."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        *announcements, sentence = captured.err.splitlines()
        assert sentence.startswith("quantenv: ")
        assert not any(line.startswith("quantenv: ") for line in announcements)
        return sentence

    return run
