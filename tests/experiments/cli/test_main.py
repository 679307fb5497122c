import dataclasses
import subprocess
import sys

import pytest

from experiments.cli.enumerate import EnumerateOptions
from experiments.cli.listing import AgentsOptions, DevicesOptions, TasksOptions
from experiments.cli.main import COMMANDS, main
from experiments.cli.optimum import OptimumOptions
from experiments.cli.sensitivity import SensitivityOptions
from experiments.cli.solve import SolveOptions
from experiments.cli.store import ExportOptions, InfoOptions, MergeOptions, PruneOptions
from experiments.cli.tune import TuneOptions
from experiments.leaderboard.suite import BenchmarkOptions
from experiments.options.runs import FinetuneOptions, TrainOptions, ValidateOptions
from experiments.options.tools import PrepareOptions

POSITIONAL = ("folder", "file", "source", "problem")
OPTIONS = {
    "benchmark": BenchmarkOptions,
    "train": TrainOptions,
    "finetune": FinetuneOptions,
    "validate": ValidateOptions,
    "sensitivity": SensitivityOptions,
    "solve": SolveOptions,
    "tune": TuneOptions,
    "enumerate": EnumerateOptions,
    "prepare": PrepareOptions,
    "optimum": OptimumOptions,
    "store info": InfoOptions,
    "store export": ExportOptions,
    "store merge": MergeOptions,
    "store prune": PruneOptions,
    "tasks": TasksOptions,
    "agents": AgentsOptions,
    "devices": DevicesOptions,
}


def test_help_and_lists_load_no_torch():
    """What makes `--help` slow is seen by name, not by the clock."""
    program = """
import sys
from experiments.cli.main import COMMANDS, main
for arguments in (["--help"], ["--version"], ["agents"], *([command, "--help"] for command in COMMANDS)):
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    assert not code, arguments
    heavy = {"torch", "matplotlib", "stable_baselines3", "pandas", "pyarrow", "tensorboard", "jsonargparse"}
    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in text
        assert command.summary in text


def test_no_arguments_is_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", OPTIONS)
def test_help_explains_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = []
    for field in dataclasses.fields(OPTIONS[command]):
        if dataclasses.is_dataclass(field.type):
            names += [f"--{field.name}.{inner.name}" for inner in dataclasses.fields(field.type)]
        else:
            names.append(field.name.upper() if field.name in POSITIONAL else f"--{field.name}")
    for name in names:
        (start,) = [number for number, line in enumerate(lines) if line.startswith(f"  {name} ") or line == f"  {name}"]
        explanation = " ".join(lines[start : start + 3])
        assert "type:" in explanation, name
        words = explanation.split("(type:")[0].split()
        assert len(words) > 3, f"{name} is not explained"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "Did you mean 'train'"),
        (["--halp"], "'--help'"),
        (["train", "--task=digit"], "Did you mean 'digits'"),
        (["train", "--agent=reinforc"], "Did you mean 'reinforce'"),
        (["train", "--device=generik"], "Did you mean 'generic'"),
        (["train", "--metric=bopps"], "Did you mean 'bops'"),
        (["train", "--constraint=masc"], "Did you mean 'mask'"),
        (["train", "--evaluator=ptk"], "Did you mean 'ptq'"),
        (["train", "--agent_options.hiden=3"], "Did you mean 'hidden'"),
        (["train", "--agent_options.hidden=many"], "is 'many'; expected a whole number"),
        (["train", "--pinned.stam=8"], "Did you mean 'stem'"),
        (["train", "--budget=1.5"], "1.5"),
        (["train", "--budget=-0.1"], "-0.1"),
        (["train", "--budget=0.05"], "0.25"),  # 2-bit weights are a quarter of 8-bit ones
        (["train", "--evaluations=0"], "at least 1"),
        (["train", "--evaluations=many"], "--evaluations"),
        (["train", "--seed=-1"], "from 0 to"),
        (["train", "--qat.epochs=-1"], "epochs"),
        (["train", "--qat.epoch=1"], "Did you mean '--qat.epochs'"),
        (["train", "--bits=x"], "--bits is ['x']; expected whole numbers, as 2,4,8"),
        (["train", "extra"], "'extra'"),
        (["train", "--task"], "--task expects a value"),
        (["train", "--config=missing.yaml"], "missing.yaml"),
        (["train", "--resume=missing"], "no run folder missing"),
        (["finetune"], "--run FOLDER or --allocation FILE"),
        (["finetune", "--allocation=missing.json"], "missing.json"),
        (["validate"], "FOLDER"),
        (["validate", "missing"], "no run folder missing"),
        (["validate", "missing", "--sample=-1"], "at least 0"),
        (["agents", "--agent=pp"], "Did you mean 'ppo'"),
        (["devices", "--device=generik"], "Did you mean 'generic'"),
        (["tasks", "--task=digit"], "Did you mean 'digits'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, expected, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(*arguments)
    assert not list(tmp_path.iterdir())  # no debris


def test_ctrl_c_before_a_run_has_begun_is_exit_code_130(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.listing.list_tasks", interrupted)
    assert main(["tasks"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/x.npz", "{file}/x.npz", "{folder}", "{folder}/" + "x" * 300])
def test_a_place_that_cannot_be_is_one_sentence_before_anything_is_done(place, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("quantenv.tasks._make", None)
    (tmp_path / "file").touch()
    path = place.format(file=tmp_path / "file", folder=tmp_path)
    sentence = refused("enumerate", "--task=digits", "--bits=8", f"--output={path}")
    assert "Give another one" in sentence or "another --output" in sentence
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
