"""The task `imagefolder`: any network, and images in one folder for each class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from quantenv.core.errors import QuantenvError
from quantenv.tasks.base import Task
from quantenv.tasks.data.datasets import task_from_datasets
from quantenv.tasks.data.image_files import ImageReader
from quantenv.tasks.networks.models import TORCHVISION, make_network
from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.source import TaskSource

logger = logging.getLogger(__name__)

#: Size and normalisation of networks that torchvision publishes no weights of: those of ImageNet in torchvision.
SIZE, RESIZE, MEAN, STD = 224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Memory of each split, in bytes, unless the number of images is given.
SPLIT_BYTES = 2**30
#: Images that rewards are measured on, unless the number of images is given.
SEARCH = 2000
#: Share of a folder without train/ and val/ that is held out.
HELD_OUT = 0.4
SPLIT_SEED = 0
#: Of what a function of the user's draws when it makes the network: the same task in every process.
WEIGHT_SEED = 0


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: shorter side resized, the centre cut out, scaled to [0, 1], normalised."""

    resize: int = RESIZE
    """Length of the shorter side, pixels."""
    crop: int = SIZE
    """Height and width of the centre, pixels."""
    mean: Sequence[float] = MEAN
    """Subtracted from red, green and blue."""
    std: Sequence[float] = STD
    """Divided by."""
    interpolation: str = "bilinear"
    """How pixels are resized, as torchvision names it."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Returns the input of an image of `ImageReader`, float32 (3, crop, crop)."""
        functional = torchvision().transforms.functional
        mode = torchvision().transforms.InterpolationMode(self.interpolation)
        centre = functional.center_crop(functional.resize(image, self.resize, mode), [self.crop, self.crop])
        pixels = functional.to_tensor(centre).expand(3, -1, -1)
        return functional.normalize(pixels, list(self.mean), list(self.std))


def preprocessing(model: str, image_size: int | None = None) -> Preprocessing:
    """Returns how images are prepared for a network: for torchvision's, as its best published weights say.

    Args:
        model: As for `quantenv.tasks.networks.models.make_network`; other networks get torchvision's usual for
            ImageNet.
        image_size: Height and width, pixels, that replace resize and crop.
    """
    module, _, name = model.partition(":")
    fields: dict[str, Any] = {}
    if module == TORCHVISION:
        published = torchvision().models.get_model_weights(name).DEFAULT.transforms()
        fields = {
            "resize": published.resize_size[0],
            "crop": published.crop_size[0],
            "mean": tuple(published.mean),
            "std": tuple(published.std),
            "interpolation": published.interpolation.value,
        }
    if image_size is not None:
        fields |= {"resize": image_size, "crop": image_size}
    return Preprocessing(**fields)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Image files and their classes, decoded when they are asked for."""

    def __init__(self, samples: Sequence[tuple[str, int]], prepare: Preprocessing) -> None:
        """Keeps paths and classes."""
        self._samples, self._prepare, self._reader = samples, prepare, ImageReader()

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Returns an input (3, crop, crop) and its class.

        Raises:
            QuantenvError: If the file is no sound image, or means no certain brightness; see `ImageReader`.
        """
        path, label = self._samples[index]
        return self._prepare(self._reader.read(path)), label


def make_imagefolder(source: TaskSource) -> Task:
    """Makes the task.

    `source.data` holds train/ and val/, each with a folder of images for each class, or such folders themselves. Of the
    latter, two fifths of each class are held out, drawn once and for all. Classes are numbered in alphabetical order,
    as torchvision does.

    Raises:
        QuantenvError: If data, network or weights are missing, cannot be read or do not fit each other.
    """
    if source.weights is None and source.model is not None and source.model.startswith(f"{TORCHVISION}:"):
        raise QuantenvError(
            f"Model {source.model} has random weights without --weights: give the file of a state dict, DEFAULT for "
            "those that torchvision publishes, or first run `quantenv pretrain --task imagefolder`."
        )
    return imagefolder_of(source, WEIGHT_SEED)


def imagefolder_of(source: TaskSource, seed: int) -> Task:
    """Makes the task, of random weights if none are given: that is what training from scratch begins with.

    Args:
        source: As for `make_imagefolder`.
        seed: Of random weights.

    Raises:
        QuantenvError: As `make_imagefolder`.
    """
    data, model = source.data, source.model
    if data is None or model is None:
        raise QuantenvError(
            "Task 'imagefolder' needs --data, a folder of images by class, and --model, such as "
            "torchvision:mobilenet_v2; and --weights, a file or DEFAULT."
        )
    train, held_out, classes = _parts(Path(data))
    # A function of the user's knows its own number of classes.
    outputs = len(classes) if model.startswith(f"{TORCHVISION}:") else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(model, source.weights, outputs)
    prepare = preprocessing(model, source.image_size)
    _check_outputs(network, prepare.crop, source, classes)
    samples = source.max_images or max(1, SPLIT_BYTES // (4 * 3 * prepare.crop**2))
    return task_from_datasets(
        network,
        Images(train, prepare),
        Images(held_out, prepare),
        "imagefolder",
        train_samples=samples,
        search_samples=source.max_images or min(samples, SEARCH),
        test_samples=samples,
        source=f"Images of {len(classes)} classes in {Path(data).name}.",
    )


def _parts(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[str]]:
    """Returns the files and classes to train on, those held out, and the names of the classes."""
    if not folder.is_dir():
        raise QuantenvError(f"There is no folder {folder}; expected train/ and val/ in it, or a folder for each class.")
    parts = [name for name in ("train", "val") if (folder / name).is_dir()]
    if len(parts) == 1:
        missing = "val" if parts == ["train"] else "train"
        raise QuantenvError(
            f"{folder} holds {parts[0]}/ but no {missing}/; expected both, or a folder for each class and neither."
        )
    if parts:
        (train, classes), (held_out, others) = (_files(folder / name) for name in parts)
        if classes != others:
            odd = min(set(classes) ^ set(others))
            raise QuantenvError(
                f"The classes of {folder} differ: {odd!r} is in {'train' if odd in classes else 'val'}/ only; expected "
                "the same folders in both."
            )
        return train, held_out, classes
    every, classes = _files(folder)
    logger.warning(
        "%s has no train/ and val/: %.0f%% of each class are held out. If the weights were trained on them, accuracies "
        "are those of training images.",
        folder,
        100 * HELD_OUT,
    )
    rng = np.random.default_rng(SPLIT_SEED)
    train, held_out = [], []
    for label, name in enumerate(classes):
        files = [sample for sample in every if sample[1] == label]
        if len(files) < 2:
            raise QuantenvError(f"Class {name!r} of {folder} has one image; expected at least 2, one to hold out.")
        order = rng.permutation(len(files))
        held = max(1, round(HELD_OUT * len(files)))
        held_out += [files[index] for index in order[:held]]
        train += [files[index] for index in order[held:]]
    return train, held_out, classes


def _files(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    try:
        found = torchvision().datasets.ImageFolder(folder)
    except OSError as error:  # no class, or a class without images
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise QuantenvError(f"{folder} is no folder of images by class: {reason}.") from error
    return found.samples, found.classes


def _check_outputs(network: nn.Module, size: int, source: TaskSource, classes: Sequence[str]) -> None:
    """Runs the network on one input and compares its outputs with the classes."""
    try:
        with torch.inference_mode():
            outputs = network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise QuantenvError(
            f"{source.model} does not run on an image of {size} x {size}: {(str(error).splitlines() or [''])[0]} "
            "Choose another --image_size."
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (1, len(classes)):
        made = f"outputs of shape {tuple(outputs.shape[1:])}" if isinstance(outputs, torch.Tensor) else "no tensor"
        raise QuantenvError(
            f"{source.model} has {made} for an image, but {source.data} holds {len(classes)} classes "
            f"({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}): give weights that were trained for "
            "these classes."
        )
