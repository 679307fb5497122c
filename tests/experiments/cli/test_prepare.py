import dataclasses
import shutil

import pytest

from experiments.cli.main import main
from experiments.cli.prepare import differences
from experiments.runs.run_folder import RunFolder
from quantenv.evaluation.preparing import find_prepared
from quantenv.quantization.prepared import read_prepared, write_prepared
from quantenv.tasks import get_task
from tests.experiments.conftest import run_train

SCHEME = "linear+bias"
SHORT = ("--agent=random", "--evaluations=4", "--qat.epochs=0", f"--scheme={SCHEME}")


def changed(path, target):
    """Writes a copy with one scale of a stored tensor doubled."""
    prepared = read_prepared(path)
    scale = prepared.tensors["sites/scale"].clone()
    scale[0, 7] *= 2
    write_prepared(dataclasses.replace(prepared, tensors={**prepared.tensors, "sites/scale": scale}), target)
    return target


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "digits.safetensors"
    assert main(["prepare", "--task=digits", f"--scheme={SCHEME}", f"--output={path}"]) == 0
    return path


def test_it_says_which_numbers_they_are(capsys):
    assert main(["prepare", "--task=digits"]) == 0
    text = capsys.readouterr().out
    prepared = find_prepared(get_task("digits"))
    assert f"prepared network {prepared.content_hash}" in text
    assert f"{prepared.about.references['search'].loss:.6f}" in text


def test_the_same_numbers_come_out_again_here(exported, capsys):
    assert main(["prepare", "--task=digits", f"--scheme={SCHEME}", f"--check={exported}"]) == 0
    assert f"the same numbers come out here, {read_prepared(exported).content_hash}" in capsys.readouterr().out


def test_other_numbers_are_listed(exported, tmp_path, capsys):
    other = changed(exported, tmp_path / "other.safetensors")
    assert main(["prepare", "--task=digits", f"--scheme={SCHEME}", f"--check={other}"]) == 1
    text = capsys.readouterr().out
    count = read_prepared(exported).tensors["sites/scale"].numel()
    assert f"sites/scale: 1 of {count} numbers, by at most" in text
    assert "layers/" not in text
    one, two = read_prepared(exported), read_prepared(other)
    fewer = {name: value for name, value in two.tensors.items() if name != "layers/stem/bias"}
    (line, _) = differences(one, dataclasses.replace(two, tensors=fewer))
    assert line == "layers/stem/bias: only one has it, or their shapes differ"


def test_sensitivities_go_into_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "digits.safetensors"
    arguments = ["--task=digits", "--scheme=linear"]
    assert main(["prepare", *arguments, "--sensitivities", f"--output={path}"]) == 0
    (found,) = read_prepared(path).about.sensitivities.values()
    assert len(found) == 1 + 8 * 2 * 7 + 1  # at 8 bits, each layer's deviations, and those that observations show
    assert not (tmp_path / "cache" / "sensitivity").exists()


@pytest.fixture(scope="module")
def run(exported, tmp_path_factory):
    """A run with numbers that are not this machine's own."""
    folder = tmp_path_factory.mktemp("runs")
    theirs = changed(exported, folder / "theirs.safetensors")
    made = run_train(folder, *SHORT, f"--prepared={theirs}")
    theirs.unlink()
    return made


def test_a_run_moves_with_its_numbers(run, exported, tmp_path, capsys):
    moved = shutil.copytree(run, tmp_path / "moved")
    kept = read_prepared(moved / "prepared.safetensors")
    assert kept.content_hash != read_prepared(exported).content_hash
    assert RunFolder.open(moved).options().prepared == str(moved / "prepared.safetensors")
    assert main(["validate", str(moved), "--all"]) == 0
    assert main(["train", f"--resume={moved}", "--evaluations=6"]) == 0
    assert main(["validate", str(moved), "--all"]) == 0
    assert "6 of 6 recorded evaluations" in capsys.readouterr().out


def test_a_run_s_numbers_are_fine_tuned_from_under_its_scheme_only(run, tmp_path, capsys):
    assert main(["finetune", f"--run={run}", f"--output={tmp_path / 'same'}"]) == 0
    assert "0 epochs" in capsys.readouterr().out
    assert main(["finetune", f"--run={run}", "--scheme=linear", f"--output={tmp_path / 'other'}"]) == 0


def test_what_ships_is_not_copied(tmp_path):
    run = run_train(tmp_path, "--agent=random", "--evaluations=1", "--qat.epochs=0")
    assert not (run / "prepared.safetensors").exists()


def test_a_file_of_another_scheme_or_none_is_refused(exported, tmp_path, refused):
    sentence = refused("train", f"--runs={tmp_path}", f"--prepared={exported}")
    assert f"was made for task 'digits' under scheme '{SCHEME}'" in sentence
    assert "not 'digits' under 'linear+bias+batch-norm'" in sentence
    assert "Leave it out" in sentence
    assert "There is no file" in refused("sensitivity", "--prepared=missing.safetensors")
    (tmp_path / "damaged").write_bytes(exported.read_bytes()[:-1] + b"!")
    damaged = f"--prepared={tmp_path / 'damaged'}"
    assert "damaged" in refused("enumerate", "--bits=8", damaged, f"--output={tmp_path / 'table.npz'}")
    assert "leave --prepared out" in refused("train", "--task=digits_table", f"--prepared={exported}")


def test_options_that_exclude_each_other(refused, exported):
    for other in ("--output=x", f"--prepared={exported}"):
        assert "--check only compares" in refused("prepare", f"--check={exported}", other)
    assert "name it by --output" in refused("prepare", "--sensitivities")
    assert "name task 'digits' itself" in refused("prepare", "--task=digits_table")
