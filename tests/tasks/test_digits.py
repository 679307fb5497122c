import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from experiments.studies import ship_images
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator
from quantenv.tasks import digits, get_task, task_descriptions, task_names
from quantenv.tasks.digits import DigitsNet, digits_splits
from quantenv.training.fit import TrainingRecipe, train_float


@pytest.fixture(scope="module")
def task():
    return get_task("digits")


def test_the_network_is_accurate_on_images_it_never_saw(task):
    assert make_evaluator("ptq", task).float_evaluation("test").accuracy >= 0.96


def test_structure(task):
    assert [layer.kind for layer in task.layers] == ["conv"] + ["depthwise", "conv"] * 3 + ["linear"]
    assert sum(layer.params for layer in task.layers) == 3144
    assert 3000 <= sum(parameter.numel() for parameter in task.network.parameters()) <= 6000


def test_splits_are_fixed_disjoint_and_cover_every_image(task):
    sizes = {name: len(split) for name, split in task.splits.items()}
    assert sizes == {"train": 897, "calibration": 256, "search": 450, "test": 450}
    rows = [{image.numpy().tobytes() for image in task.splits[name].inputs} for name in ("train", "search", "test")]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 1797
    again = digits_splits()
    assert all(torch.equal(again[name].inputs, task.splits[name].inputs) for name in again)
    calibration = {image.numpy().tobytes() for image in task.splits["calibration"].inputs}
    assert calibration <= rows[0]


def test_images_are_scikit_learns(task):
    data = load_digits()
    known = {image.astype(np.float32).tobytes(): label for image, label in zip(data.images, data.target, strict=True)}
    for name in ("train", "search", "test"):
        split = task.splits[name]
        assert [known[(16 * image[0]).numpy().tobytes()] for image in split.inputs] == split.labels.tolist()


def test_missing_and_damaged_images_say_what_to_do(tmp_path, monkeypatch):
    damaged = tmp_path / "digits.safetensors"
    damaged.write_bytes(digits.IMAGES.read_bytes()[:-9] + b"\1" * 9)
    for path, sentence in ((damaged, "install quantenv again"), (tmp_path / "none", "There is no file")):
        monkeypatch.setattr(digits, "IMAGES", path)
        with pytest.raises(QuantenvError, match=sentence):
            digits_splits()


def test_the_command_writes_the_same_file(tmp_path, capsys):
    ship_images.main([f"--output={tmp_path / 'images'}"])
    assert (tmp_path / "images").read_bytes() == digits.IMAGES.read_bytes()


def test_fewer_bits_hurt_and_layers_are_very_unequal(task):
    evaluator = make_evaluator("ptq", task)
    uniform = {bits: evaluator.evaluate([Allocation.make(task.layers, bits)])[0].accuracy for bits in (8, 6, 4, 3, 2)}
    assert uniform[8] > 0.95
    assert uniform[6] >= uniform[4] - 0.02 >= uniform[3] - 0.04
    assert uniform[2] < uniform[6] - 0.1
    one_layer = [[2 if i == index else 8 for i in range(8)] for index in range(8)]
    alone = [e.accuracy for e in evaluator.evaluate([Allocation.make(task.layers, bits) for bits in one_layer])]
    assert max(alone) - min(alone) > 0.03


def test_training_is_deterministic_and_private():
    split = digits_splits()["train"]
    recipe = TrainingRecipe(epochs=1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train_float(DigitsNet, split, recipe).state_dict()
    torch.manual_seed(99)
    second = train_float(DigitsNet, split, recipe).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = train_float(DigitsNet, split, TrainingRecipe(epochs=1, seed=2)).state_dict()
    assert not torch.equal(first["stem.weight"], other["stem.weight"])
    torch.set_rng_state(state)
    train_float(DigitsNet, split, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_registry():
    assert "digits" in task_names()
    assert set(task_descriptions()) == set(task_names())
    with pytest.raises(QuantenvError, match="Did you mean 'digits'"):
        get_task("digit")
