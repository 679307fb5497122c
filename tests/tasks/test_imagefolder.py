import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from quantenv.core.errors import QuantenvError
from quantenv.tasks import TaskSource, get_task
from quantenv.tasks.imagefolder import MEAN, STD, Preprocessing, preprocessing
from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.source import absolute
from tests.networks import branched
from tests.tasks.images import CLASSES, write_images, write_parts

OWN = "tests.networks:branched"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(branched(seed=7).state_dict(), path)
    return str(path)


def source(folder, weights=None, **options):
    return TaskSource(data=str(folder), model=OWN, weights=weights, image_size=16, **options)


def rows(split):
    return {image.numpy().tobytes() for image in split.inputs}


def test_folders_of_images_and_a_network_are_a_task(folder, weights):
    task = get_task("imagefolder", source(folder, weights))
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 20,
        "calibration": 20,
        "search": 15,
        "test": 15,
    }
    assert task.splits["train"].inputs.shape == (20, 3, 16, 16)
    assert all(torch.equal(v, branched(seed=7).state_dict()[k]) for k, v in task.network.state_dict().items())
    for split in task.splits.values():  # classes are numbered alphabetically: the brighter, the higher
        pixels = split.inputs * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert torch.equal(((pixels.mean((1, 2, 3)) * 255 - 30) / 40).round().long(), split.labels)
    assert get_task("imagefolder", source(folder, weights)) is task


def test_rewards_and_reports_are_on_the_images_of_val(folder):
    task = get_task("imagefolder", source(folder))
    prepare = preprocessing(OWN, 16)
    held_out = {prepare(Image.open(path).convert("RGB")).numpy().tobytes() for path in folder.glob("val/*/*.png")}
    assert rows(task.splits["search"]) | rows(task.splits["test"]) == held_out


def test_the_number_of_images_can_be_bounded(folder):
    task = get_task("imagefolder", source(folder, max_images=6))
    assert [len(task.splits[name]) for name in ("train", "search", "test")] == [6, 6, 6]


def test_a_single_folder_is_split_within_each_class(tmp_path, caplog):
    folder = write_images(tmp_path, 10, 0)
    with caplog.at_level(logging.WARNING):
        task = get_task("imagefolder", source(folder))
    assert "40% of each class are held out" in caplog.text
    held_out = torch.cat([task.splits["search"].labels, task.splits["test"].labels])
    assert held_out.bincount().tolist() == [4] * 5
    assert task.splits["train"].labels.bincount().tolist() == [6] * 5
    assert not rows(task.splits["train"]) & (rows(task.splits["search"]) | rows(task.splits["test"]))


@pytest.mark.parametrize("model", ["mobilenet_v2", "resnet18", "vit_b_16", "efficientnet_b0"])
@pytest.mark.parametrize("size", [(300, 240), (180, 260)])
def test_images_are_prepared_as_the_published_weights_say(model, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    published = torchvision().models.get_model_weights(model).DEFAULT.transforms()
    assert torch.equal(preprocessing(f"torchvision:{model}")(image), published(image))


def test_an_image_size_replaces_resize_and_crop():
    assert preprocessing("torchvision:resnet18", 40) == Preprocessing(40, 40)
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    assert preprocessing(OWN, 40)(image).shape == (3, 40, 40)


def test_a_torchvision_network_has_as_many_outputs_as_there_are_classes(folder, tmp_path):
    network = torchvision().models.squeezenet1_1(num_classes=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    brought = TaskSource(str(folder), "torchvision:squeezenet1_1", str(tmp_path / "weights.pt"), 32, 2)
    task = get_task("imagefolder", brought)
    assert task.network(task.splits["search"].inputs).shape == (2, 5)
    assert len(task.layers) == 26


def test_paths_are_kept_whole():
    assert absolute("DEFAULT") == "DEFAULT"
    assert absolute(None) is None
    assert absolute("images").startswith("/")


def only_train(path):
    write_images(path / "train", 2, 0)


def other_classes(path):
    write_images(path / "train", 2, 0)
    write_images(path / "val", 2, 1, CLASSES[:4])


def empty_class(path):
    write_images(path, 3, 0)
    (path / "fox").mkdir()


def single_image(path):
    write_images(path, 3, 0)
    shutil.copytree(path / "ant", path / "fox", ignore=shutil.ignore_patterns("001*", "002*"))


def damaged(path):
    write_images(path, 3, 0)
    for file in path.glob("bee/*.png"):
        file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.rmdir(), "There is no folder"),
        (lambda path: None, "is no folder of images by class: Couldn't find any class folder"),
        (only_train, "holds train/ but no val/"),
        (other_classes, "'emu' is in train/ only"),
        (empty_class, "is no folder of images by class: Found no valid file for the classes fox"),
        (single_image, "Class 'fox' of .* has one image"),
        (lambda path: write_images(path, 3, 0, CLASSES[:3]), r"outputs of shape \(5,\) .* 3 classes \(ant, bee, cat\)"),
        (damaged, "Cannot read the image .*bee"),
    ],
)
def test_unusable_folders_are_clear_errors(tmp_path, write, sentence):
    write(tmp_path)
    with pytest.raises(QuantenvError, match=sentence):
        get_task("imagefolder", source(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("digits", {"data": "images"}, "'digits' takes no --data: leave it out, or use one that does .*imagefolder"),
        ("imagefolder", {}, "needs --data"),
        ("imagefolder", {"model": "torchvision:resnet19", "weights": "w.pt"}, "Did you mean"),
        ("imagefolder", {"model": "torchvision:resnet18"}, "random weights without --weights"),
        ("imagefolder", {"model": "torchvision:resnet18", "weights": "missing.pt"}, "No such file"),
        ("imagefolder", {"model": OWN, "weights": "DEFAULT"}, "Only torchvision publishes"),
        ("imagefolder", {"model": OWN, "image_size": 1}, "does not run on an image of 1 x 1"),
        ("imagefolder", {"model": OWN, "image_size": 0}, "image_size is 0"),
        ("imagefolder", {"model": OWN, "max_images": 0}, "max_images is 0"),
    ],
)
def test_mistakes_are_clear(folder, name, options, sentence):
    brought = {"data": str(folder)} if "model" in options else {}
    with pytest.raises(QuantenvError, match=sentence):
        get_task(name, TaskSource(**brought, **options))
