"""Functions of the user's own: run if they were named on a command line, and not if only a file names them."""

import subprocess
import sys

import pytest

from experiments.cli.main import main
from experiments.leaderboard.suite import BenchmarkOptions
from experiments.options.parsing import parse_options
from quantenv.core.errors import QuantenvError
from quantenv.core.own_code import name_on_command_line, only_named_functions, own_function
from quantenv.tasks.networks.models import make_network

SOURCE = """
from pathlib import Path
from torch import nn
Path({marker!r}).touch()
def make(num_classes=10):
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    return nn.Sequential(*layers)
"""


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A module `networks_of_mine`, not yet imported, that makes a file when it is."""
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "networks_of_mine.py").write_text(SOURCE.format(marker=str(tmp_path / "imported")))
    yield tmp_path / "imported"
    sys.modules.pop("networks_of_mine", None)


def test_python_names_what_it_likes(marker):
    make_network("networks_of_mine:make")
    assert marker.exists()


def test_a_file_names_nothing_new(marker, tmp_path, refused):
    (tmp_path / "mine.yaml").write_text("model: networks_of_mine:make\ninput: 3,16,16\n")
    for _ in range(2):
        sentence = refused("layers", f"--config={tmp_path / 'mine.yaml'}")
        assert "'networks_of_mine:make'" in sentence
        assert "`quantenv layers --model networks_of_mine:make`" in sentence
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os:abort", "subprocess:Popen", "builtins:breakpoint", "os:path.join"])
def test_functions_of_pythons_own_are_no_exception(name, tmp_path, refused):
    (tmp_path / "mine.yaml").write_text(f"model: {name}\n")
    assert "files run no code" in refused("layers", f"--config={tmp_path / 'mine.yaml'}")


def test_what_a_command_line_named_once_a_file_may_name(marker, tmp_path, capsys):
    assert main(["layers", "--model=networks_of_mine:make", "--input=3,16,16"]) == 0
    (tmp_path / "mine.yaml").write_text("model: networks_of_mine:make\ninput: 3,16,16\n")
    assert main(["layers", f"--config={tmp_path / 'mine.yaml'}"]) == 0


def test_of_a_list_each_is_named(marker, tmp_path):
    parse_options(BenchmarkOptions, "benchmark", ["--tasks=digits,networks_of_mine:make", "--agents=random"])
    with only_named_functions():
        assert callable(own_function("networks_of_mine:make", "task"))


def test_another_module_of_the_same_name_is_another(marker, tmp_path, monkeypatch):
    name_on_command_line("networks_of_mine:make")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "networks_of_mine.py").write_text("def make(): raise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path / "theirs"))
    with only_named_functions(), pytest.raises(QuantenvError, match="never named on a command line"):
        own_function("networks_of_mine:make", "model")


def test_processes_of_a_command_are_as_careful(marker):
    program = "from quantenv.tasks.networks.models import make_network; make_network('networks_of_mine:make')"
    with only_named_functions():
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=marker.parent / "code"
        )
    assert "never named on a command line" in ended.stderr
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["torchvision:resnet18", "digits", "C:\\data\\x.npz", "sqlite:///x", "a:b:c", "x:", ":x", "a b:c"]
)
def test_other_texts_name_no_function(text, marker, tmp_path):
    name_on_command_line(text)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_said(marker, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "file"))
    with pytest.raises(QuantenvError, match="Set QUANTENV_CACHE"):
        name_on_command_line("networks_of_mine:make")
