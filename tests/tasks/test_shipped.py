import hashlib
import os
import subprocess
import sys

import pytest
import torch

from experiments.studies.ship_weights import main
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import WEIGHTS_FORMAT, read_tensors
from quantenv.tasks import get_task, shipped
from quantenv.tasks.digits import DigitsNet
from quantenv.tasks.resnet20 import ResNet20
from quantenv.tasks.shipped import shipped_network, weights_file

NETWORKS = {"digits": DigitsNet, "resnet20": ResNet20}
#: Of the files that every result on these tasks was recorded with.
SHA256 = {
    "digits": "2962db252ec660a20a1fc4bf34e9cb352c37408a0b7a328d60aab4a87e40b57b",
    "resnet20": "0e33d1d0cc90b091d4ed122235216b1e0142bb81bd71ba0dd2d9a8144f0576ae",
}


@pytest.mark.parametrize("task", NETWORKS)
def test_the_files_are_those_that_results_were_recorded_with(task):
    path = weights_file(task)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[task]
    about, _ = read_tensors(path, WEIGHTS_FORMAT, "weights", "")
    assert about["command"].endswith(f"ship_weights {task}") or "--weights" in about["command"]
    assert about["torch"]


@pytest.mark.parametrize("task", NETWORKS)
def test_networks_are_ready_and_loading_draws_nothing(task):
    state = torch.get_rng_state()
    network = shipped_network(task, NETWORKS[task])
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    _, tensors = read_tensors(weights_file(task), WEIGHTS_FORMAT, "weights", "")
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())


def test_the_task_is_one_network_on_every_processor():
    program = "from quantenv.tasks import get_task; print(get_task('digits').identity)"
    narrow = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"}
    found = subprocess.run([sys.executable, "-c", program], env=os.environ | narrow, capture_output=True, text=True)
    assert found.stdout.strip() == get_task("digits").identity, found.stderr


@pytest.mark.parametrize(
    "damage", [lambda file: b"", lambda file: file[: len(file) // 2], lambda file: file[:-1] + b"!"]
)
def test_damaged_and_foreign_files_are_refused(damage, tmp_path, monkeypatch):
    path = tmp_path / "digits.safetensors"
    path.write_bytes(damage(weights_file("digits").read_bytes()))
    monkeypatch.setattr(shipped, "weights_file", lambda task: path)
    with pytest.raises(QuantenvError, match="install quantenv again"):
        shipped_network("digits", DigitsNet)


def test_weights_of_another_network_are_refused(monkeypatch):
    monkeypatch.setattr(shipped, "weights_file", lambda task: weights_file("resnet20"))
    with pytest.raises(QuantenvError, match="weights of another network than DigitsNet"):
        shipped_network("digits", DigitsNet)


def test_the_command_trains_reproducibly_and_says_what_it_did(tmp_path, capsys):
    for name in ("one", "two"):
        main(["digits", "--epochs=1", f"--output={tmp_path / name}"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert hashlib.sha256((tmp_path / "one").read_bytes()).hexdigest() in capsys.readouterr().out.replace("\n", "")
    about, tensors = read_tensors(tmp_path / "one", WEIGHTS_FORMAT, "weights", "")
    assert about["recipe"]["epochs"] == 1
    DigitsNet().load_state_dict(tensors)


def test_the_command_converts_a_state_dict(tmp_path):
    source = tmp_path / "resnet20_cifar10_jpeg.pt"
    state = ResNet20().state_dict()
    torch.save(state, source)
    main(["resnet20", f"--weights={source}", f"--output={tmp_path / 'converted'}"])
    about, tensors = read_tensors(tmp_path / "converted", WEIGHTS_FORMAT, "weights", "")
    assert all(torch.equal(value, tensors[name]) for name, value in state.items())
    assert about["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
