import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli.main import main
from experiments.options.signals import GracefulStop
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.evaluation.post_training import evaluate_logits
from quantenv.tasks import TaskSource, get_task
from quantenv.training.pretrain import FORMAT
from tests.tasks.data_sets import write_mnist
from tests.tasks.images import write_parts

SHORT = ("--task=mnist", "--epochs=3", "--batch-size=20", "--crop-padding=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Folder, weights and cache of an unbroken training, whose weights lie where the task looks for them."""
    cache, runs = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTENV_CACHE", str(cache))
        assert main(["pretrain", *SHORT, f"--data={data}", f"--runs={runs}"]) == 0
    (folder,) = runs.glob("mnist/pretrain/*")
    return folder, cache / "weights" / "mnist-resnet20.safetensors", cache


def state(path):
    return load_file(path)


def equal(one, other):
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_task_finds_the_weights(trained, data, monkeypatch, capsys):
    _, weights, cache = trained
    monkeypatch.setenv("QUANTENV_CACHE", str(cache))
    task = get_task("mnist", TaskSource(data=str(data)))
    assert all(torch.equal(value, state(weights)[key]) for key, value in task.network.state_dict().items())
    assert main(["tasks", "--task=mnist", f"--data={data}"]) == 0
    assert "layer3.2.conv2" in capsys.readouterr().out


def test_the_curves_are_those_of_the_training(trained, data):
    folder, weights, _ = trained
    for name in ("train_loss", "learning_rate", "search_accuracy", "search_loss", "images_per_second"):
        assert [step for step, _ in scalars(folder, f"pretrain/{name}")] == [1, 2, 3]
    task = get_task("mnist", TaskSource(data=str(data), weights=str(weights)))
    last = evaluate_logits(task.network, task.splits["search"])
    assert scalars(folder, "pretrain/search_accuracy")[-1][1] == pytest.approx(last.accuracy)
    assert scalars(folder, "pretrain/search_loss")[-1][1] == pytest.approx(last.loss)
    rates = [rate for _, rate in scalars(folder, "pretrain/learning_rate")]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [2, 5])
def test_an_interrupted_training_ends_with_the_same_weights(trained, data, tmp_path, steps, monkeypatch, capsys):
    _, weights, _ = trained
    output = tmp_path / "weights.safetensors"
    original, calls = GracefulStop.check, []

    def check(self, *arguments):
        calls.append(arguments)
        if len(calls) == steps:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GracefulStop, "check", check)
        assert main(["pretrain", *SHORT, f"--data={data}", f"--runs={tmp_path}", f"--output={output}"]) == 143
    (folder,) = tmp_path.glob("mnist/pretrain/*")
    announced = capsys.readouterr().err
    assert f"Interrupted after {(steps - 1) // 3} of 3 epochs" in announced  # three steps make an epoch
    assert f"--resume {folder}" in " ".join(announced.split())
    assert not output.exists()
    assert (folder / "checkpoint.safetensors").exists() == (steps > 3)
    assert main(["pretrain", f"--resume={folder}"]) == 0
    assert equal(output, weights)
    assert [step for step, _ in scalars(folder, "pretrain/train_loss")] == [1, 2, 3]


@pytest.mark.parametrize("options", [(), ("--processes=2",)])
def test_resuming_a_finished_training_writes_the_weights_again(trained, tmp_path, monkeypatch, options):
    folder, weights, _ = trained
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path))
    assert main(["pretrain", f"--resume={folder}", *options]) == 0
    assert equal(tmp_path / "weights" / "mnist-resnet20.safetensors", weights)


def test_weights_are_not_overwritten(trained, data, monkeypatch, refused):
    _, weights, cache = trained
    monkeypatch.setenv("QUANTENV_CACHE", str(cache))
    before = weights.stat().st_mtime_ns
    assert "There are weights in" in refused("pretrain", *SHORT, f"--data={data}")
    assert weights.stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_a_clear_error(trained, tmp_path, refused):
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    file = folder / "checkpoint.safetensors"
    content = file.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    for damaged in (content[:1000], b"", flipped):
        file.write_bytes(damaged)
        assert "Remove it to begin anew" in refused("pretrain", f"--resume={folder}")
    file.write_bytes(content)
    numbers, tensors = read_tensors(file, FORMAT, "", "")
    weight = next(name for name in tensors if name.startswith("network/"))
    for change, wrong in (({"epoch": 99}, {}), ({"epoch": True}, {}), ({}, {weight: torch.zeros(1)}), ({"x": 1}, {})):
        write_tensors(file, FORMAT, {**numbers, **change}, {**tensors, **wrong})
        assert "Cannot continue from" in refused("pretrain", f"--resume={folder}")
    file.unlink()
    file.with_suffix(".pt").write_bytes(content)
    assert "is of an earlier version" in refused("pretrain", f"--resume={folder}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task=digits",), "Unknown task to pretrain: 'digits'"),
        (("--model=resnet18",), "Unknown network of task 'cifar10'"),
        (("--weights=w.pt",), "leave --weights out"),
        (("--image-size=64",), "takes no --image_size"),
        (("--data=missing",), "holds no CIFAR10"),
        (("--batch-size=1",), "--batch_size is 1"),
        (("--threads=0",), "--threads is 0"),
        (("--resume=missing",), "missing is no folder of a training"),
        (("--resume=missing", "--epochs=5"), "leave --epochs out"),
    ],
)
def test_mistakes_are_one_sentence(refused, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path))
    assert sentence in refused("pretrain", *arguments)


def test_a_network_of_the_user_s_is_trained_on_a_folder_of_images(tmp_path, capsys):
    images, weights = write_parts(tmp_path / "images"), tmp_path / "weights.safetensors"
    brought = ["--task=imagefolder", f"--data={images}", "--model=tests.networks:branched", "--image-size=16"]
    short = ["--epochs=2", "--batch-size=4", f"--runs={tmp_path / 'runs'}"]
    assert main(["pretrain", *brought, *short]) == 2
    assert "needs --output" in capsys.readouterr().err
    assert main(["pretrain", *brought, *short, f"--output={weights}", "--seed=1"]) == 0
    assert "imagefolder, tests.networks:branched: test accuracy" in capsys.readouterr().out
    task = get_task(
        "imagefolder",
        TaskSource(data=str(images), model="tests.networks:branched", weights=str(weights), image_size=16),
    )
    assert all(torch.equal(value, state(weights)[key]) for key, value in task.network.state_dict().items())
    (folder,) = (tmp_path / "runs").glob("imagefolder/pretrain/*")
    assert folder.name.startswith("tests.networks.branched-1-")
    weights.unlink()
    assert main(["pretrain", f"--resume={folder}"]) == 0
    assert weights.is_file()
