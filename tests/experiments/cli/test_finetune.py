import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from experiments.cli.main import main
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.run_folder import RunFolder
from quantenv.core.allocation import Allocation
from quantenv.core.tensor_file import read_tensors
from quantenv.evaluation import Evaluation
from quantenv.tasks import get_task
from quantenv.training.checkpoint import FORMAT
from tests.digits import ANY_SCHEME, FEW_DIGITS
from tests.resealing import change_json


def test_a_run_s_best_allocation_repeats_the_table_s_row(run_copy, capsys):
    assert main(["finetune", "--run", str(run_copy)]) == 0
    content = json.loads((run_copy / "finetune" / "finetune.json").read_text())
    row = RunFolder(run_copy).read_report().row("found", "QAT")
    assert Evaluation(**content["test"]) == row.evaluation
    assert "The same as the found row" in capsys.readouterr().out
    ours, theirs = (load_file(path / "finetuned.safetensors") for path in (run_copy, run_copy / "finetune"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_command_line_overrides_the_run_s_recipe(run_copy, tmp_path):
    output = tmp_path / "out"
    assert main(["finetune", "--run", str(run_copy), "--qat.epochs=0", f"--output={output}"]) == 0
    content = json.loads((output / "finetune.json").read_text())
    assert content["recipe"]["epochs"] == 0
    assert content["best_epoch"] == 0


def test_any_allocation_file(tmp_path, capsys):
    task = get_task(FEW_DIGITS)
    file = tmp_path / "mine.json"
    Allocation.make(task.layers, 4).save(file)
    arguments = ["finetune", "--allocation", str(file), f"--task={FEW_DIGITS}", "--qat.epochs=1"]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "finetune" / "finetune.json").read_text())
    assert content["allocation"] == Allocation.load(file).to_dict()
    assert f"{content['test']['correct'] / content['test']['samples']:.2%}" in capsys.readouterr().out


def test_quantizers_and_the_scheme_are_chosen_by_option(tmp_path, refused):
    task = get_task(ANY_SCHEME)
    file = tmp_path / "mine.json"
    Allocation.make(task.layers, 3, task=ANY_SCHEME, scheme="k-means").save(file)
    start = ["finetune", "--allocation", str(file), f"--task={ANY_SCHEME}", "--qat.epochs=0"]
    assert main(start) == 0
    of_file = json.loads((tmp_path / "finetune" / "finetune.json").read_text())
    assert of_file["scheme"] == "k-means"
    choice = ["--scheme=linear+batch-norm", "--qat.weight_quantizer=dorefa", "--qat.activation_quantizer=pact"]
    assert main([*start, *choice]) == 0
    chosen = json.loads((tmp_path / "finetune" / "finetune.json").read_text())
    assert chosen["scheme"] == "linear+batch-norm"
    assert (chosen["recipe"]["weight_quantizer"], chosen["recipe"]["activation_quantizer"]) == ("dorefa", "pact")
    assert chosen["search"] != of_file["search"]
    assert "Did you mean 'k-means'" in refused(*start, "--scheme=kmeans")
    assert "Did you mean 'dorefa'" in refused(*start, "--qat.weight_quantizer=dorfa")


def test_an_allocation_without_a_task_asks_for_one(tmp_path, refused):
    file = tmp_path / "mine.json"
    Allocation.make(get_task("digits").layers, 4).save(file)
    assert "--task" in refused("finetune", "--allocation", str(file))


def test_an_allocation_of_another_network_is_refused(tmp_path, refused):
    file = tmp_path / "foreign.json"
    Allocation(("conv1", "fc"), (4, 4), (8, 8), task="digits").save(file)
    sentence = refused("finetune", "--allocation", str(file))
    assert "does not fit this network" in sentence
    assert "'conv1', 'fc' are not in the network" in sentence


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: text.replace(": 8", ": 7", 1)])
def test_a_damaged_allocation_is_refused(run_copy, refused, damage):
    best = run_copy / "best.json"
    best.write_text(damage(best.read_text()))
    assert "best.json" in refused("finetune", "--run", str(run_copy))


def test_a_run_without_a_best_allocation_is_refused(run_copy, refused):
    (run_copy / "best.json").unlink()
    assert "best.json" in refused("finetune", "--run", str(run_copy))


def test_an_interrupted_fine_tuning_goes_on_by_the_same_command(run_copy, monkeypatch, capsys):
    assert main(["finetune", "--run", str(run_copy)]) == 0
    output = run_copy / "finetune"
    expected = {path.name: path.read_bytes() for path in output.iterdir()}
    (output / "finetune.json").unlink()
    calls = 0

    def check(self, *_):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(GracefulStop, "check", check)
    assert main(["finetune", "--run", str(run_copy)]) == 143
    assert "goes on from" in capsys.readouterr().err.replace("\n", " ")
    assert (output / "checkpoint.safetensors").exists()
    calls = 100
    assert main(["finetune", "--run", str(run_copy)]) == 0
    assert calls - 100 == 5 - 2 + 2  # the steps that were left of the epoch, and the reports of epochs 0 and 1
    assert {path.name for path in output.iterdir()} == expected.keys()
    assert (output / "finetune.json").read_bytes() == expected["finetune.json"]


def test_a_run_interrupted_while_fine_tuning_goes_on_where_it_was(run_copy, monkeypatch, capsys):
    expected = {name: (run_copy / name).read_bytes() for name in ("report.json", "report.md")}
    change_json(run_copy / "report.json", lambda report: report.update(complete=False))
    reports_and_steps = 0

    def check(self, *episode):
        nonlocal reports_and_steps
        reports_and_steps += not episode
        if reports_and_steps == 10:  # uniform took 5 steps and 2 reports; found is under way
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(GracefulStop, "check", check)
    assert main(["train", "--resume", str(run_copy)]) == 130
    assert "before fine-tuning was done" in capsys.readouterr().err
    assert {path.name for path in (run_copy / "finetuning").iterdir()} == {
        "found.safetensors",
        "best_uniform.safetensors",
    }
    reports_and_steps = 100
    assert main(["train", "--resume", str(run_copy)]) == 0
    assert reports_and_steps == 100 + 2 + 1 + 3 + 1  # both reports of uniform, which is done; the rest of found
    assert {name: (run_copy / name).read_bytes() for name in expected} == expected
    assert not (run_copy / "finetuning").exists()


def test_ctrl_c_ends_all_processes_and_leaves_a_checkpoint(tmp_path):
    task = get_task("digits")
    file = tmp_path / "mine.json"
    Allocation.make(task.layers, 4).save(file)
    checkpoint = tmp_path / "finetune" / "checkpoint.safetensors"
    command = ["finetune", f"--allocation={file}", "--task=digits", "--qat.epochs=1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.main", *command, "--qat.processes=2"],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True},
    )
    while epochs_of(checkpoint) < 2 and process.poll() is None:  # the first is written before any training
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    output, _ = process.communicate(timeout=60)  # returns when all that could write to it have ended
    assert process.returncode == 130, output
    assert "goes on from" in output.replace("\n", " ")
    assert "Traceback" not in output
    assert 2 <= epochs_of(checkpoint) < 1000


def epochs_of(checkpoint):
    """Epochs begun, the one before training included; 0 without a checkpoint."""
    return read_tensors(checkpoint, FORMAT, "", "")[0]["epoch"] if checkpoint.exists() else 0


def test_a_search_does_not_begin_where_its_fine_tuning_cannot(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else find(name))
    assert "install quantenv[accelerate]" in refused("train", "--qat.processes=2")
    assert "3 processes cannot share" in refused("train", "--qat.processes=3")


def test_it_says_what_happened(finished, tmp_path, capsys):
    arguments = ["finetune", f"--run={finished}", f"--output={tmp_path}"]
    assert main([*arguments, "--qat.learning_rate=1e9"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "fine-tuned without success: test accuracy" in text
    assert "What happened: training diverged (lower its learning rate), and the result is the network before" in text
    assert json.loads((tmp_path / "finetune.json").read_text())["diverged"] is True
    assert main([*arguments, "--qat.epochs=0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "quantized and not trained (0 epochs): test accuracy" in text
    assert "diverged" not in text
