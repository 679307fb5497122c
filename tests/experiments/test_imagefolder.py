"""A network and images of the user's go through all commands that make a task."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from experiments.cli.main import main
from tests.experiments.cli.test_train import cut, results
from tests.experiments.conftest import run_train
from tests.networks import branched
from tests.tasks.images import write_parts

BROUGHT = ("--task=imagefolder", "--model=tests.networks:branched", "--image-size=16")
SHORT = ("--agent=random", "--evaluations=12", "--qat.epochs=1", "--qat.batch_size=5", "--top-k=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_parts(tmp_path_factory.mktemp("brought") / "images")
    torch.save(branched(seed=7).state_dict(), folder.parent / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run, whose paths were given relative to another folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        return run_train(tmp_path_factory.mktemp("runs"), *BROUGHT, *SHORT, "--data=images", "--weights=weights.pt")


def test_the_config_says_what_was_brought(run, folder):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert Path(config["data"]) == folder
    assert Path(config["weights"]) == folder.parent / "weights.pt"
    assert (config["model"], config["image_size"]) == ("tests.networks:branched", 16)
    assert run.parts[-3] == "imagefolder"


def test_it_validates_and_repeats_from_its_config(run, tmp_path):
    assert main(["validate", str(run), "--all", "--qat"]) == 0
    assert results(run_train(tmp_path, f"--config={run / 'config.yaml'}", f"--runs={tmp_path}")) == results(run)


def test_it_resumes(run, tmp_path):
    resumed = Path(shutil.copytree(run, tmp_path / "run"))
    cut(resumed, 5)
    assert main(["train", "--resume", str(resumed)]) == 0
    assert results(resumed) == results(run)


def test_workers_compute_the_same(run, folder, tmp_path, capsys):
    brought = (*BROUGHT, f"--data={folder}", f"--weights={folder.parent / 'weights.pt'}")
    assert results(run_train(tmp_path, *brought, *SHORT, "--workers=2")) == results(run)
    assert "to name the same class always" in " ".join(capsys.readouterr().err.split())  # its weights are random


def test_finetune_takes_it_from_the_run_or_the_command_line(run, folder, tmp_path, capsys, refused):
    assert main(["finetune", f"--run={run}", f"--output={tmp_path / 'first'}"]) == 0
    assert "The same as the found row" in capsys.readouterr().out
    shutil.copy(run / "best.json", tmp_path)
    alone = ("finetune", f"--allocation={tmp_path / 'best.json'}", "--qat.epochs=1", "--qat.batch_size=5")
    assert "needs --data" in refused(*alone)
    assert main([*alone, *BROUGHT, f"--data={folder}", f"--weights={folder.parent / 'weights.pt'}"]) == 0
    first, second = (json.loads((tmp_path / name / "finetune.json").read_text()) for name in ("first", "finetune"))
    assert first["test"] == second["test"]
    assert "does not fit this network" in refused("finetune", f"--run={run}", "--task=digits")


@pytest.mark.parametrize(
    "command",
    [
        ("tasks",),
        ("sensitivity", "--kind=sqnr", "--json"),
        ("solve", "imagefolder", "--budget=0.5", "--sensitivity=sqnr"),
        ("pareto", "--agent=random", "--evaluations=20", "--levels=2"),
        ("enumerate", "--bits=4,8", "--workers=1", "--backend=float"),
    ],
)
def test_other_commands_take_it(folder, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    task = BROUGHT if command[0] != "solve" else BROUGHT[1:]
    assert main([*command, *task, f"--data={folder}"]) == 0
    assert "block" in capsys.readouterr().out or command[0] in ("pareto", "enumerate", "solve")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--data=images"), "Task 'digits' takes no --data"),
        (("train", "--task=digits_table", "--model=torchvision:resnet18"), "leave --model out"),
        (("train", "--task=imagefolder"), "needs --data"),
        (("train", "--task=imagefolder", "--data=missing", "--model=tests.networks:branched"), "There is no folder"),
        (("train", "--resume=RUN", "--data=images"), "--data cannot be given with it"),
        (("train", *BROUGHT, "--data=FOLDER"), "batch_size is 32; the training split has only 20 samples"),
    ],
)
def test_mistakes_are_one_sentence(refused, run, folder, arguments, sentence):
    given = (argument.replace("RUN", str(run)).replace("FOLDER", str(folder)) for argument in arguments)
    assert sentence in refused(*given)
