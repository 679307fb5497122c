"""ResNet-20 on CIFAR-10: its weights ship with the package, its images do not.

The folder ``$QUANTENV_DATA`` holds `cifar10_jpeg.zip`, the CIFAR-10 images recompressed as JPEG in ``train/<class>/``
and ``test/<class>/``, which the weights were trained on.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.tasks.base import Split, Task
from quantenv.tasks.shipped import shipped_network

DATA_VARIABLE = "QUANTENV_DATA"
IMAGES = "cifar10_jpeg.zip"
#: What a table made from this task says of its data.
SOURCE = (
    "CIFAR-10 (Krizhevsky 2009), recompressed as JPEG at quality 75: accuracies lie about 3 points below those of the "
    "original images. Search and test are disjoint parts of the 10,000 test images."
)
#: Normalisation of the red, green and blue channels that the weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION, SEARCH, TEST = 512, 2000, 2000
#: Pixels of a side, classes, and bytes that no image of that size has.
SIDE, CLASSES, MOST_JPEG = 32, 10, 1 << 16
SPLIT_SEED = 0


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        stride = out_channels // in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The CIFAR ResNet of 20 layers (He et al. 2016, section 4.2)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), BasicBlock(32, 32), BasicBlock(32, 32))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), BasicBlock(64, 64), BasicBlock(64, 64))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images (B, 3, 32, 32) to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _block(layer: int, *blocks: int) -> tuple[str, ...]:
    return tuple(f"layer{layer}.{block}.conv{conv}" for block in blocks for conv in (1, 2))


#: The 8 groups of tied layers of the table: stem, blocks (where all are alike, together), classifier.
GROUPS = (
    ("conv1",),
    _block(1, 0, 1, 2),
    _block(2, 0),
    _block(2, 1, 2),
    _block(3, 0),
    _block(3, 1),
    _block(3, 2),
    ("linear",),
)


def make_resnet20(test: int = TEST) -> Task:
    """Makes the task from the folder that ``$QUANTENV_DATA`` names.

    Splits: train, all training images; calibration, 512 of them; search, 2,000 of the test images; test, others of
    them.

    Args:
        test: Images of the test split, at most 8,000.

    Raises:
        QuantenvError: If the variable is not set, or the images or weights are missing or damaged.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise QuantenvError(
            f"Task 'resnet20' needs data: set {DATA_VARIABLE} to the folder of {IMAGES}. "
            "Task 'resnet20_table' needs none."
        )
    network = shipped_network("resnet20", ResNet20)
    train, held_out = read_images(Path(folder) / IMAGES)
    rng = np.random.default_rng(SPLIT_SEED)
    calibration = rng.permutation(len(train))[:CALIBRATION]
    order = rng.permutation(len(held_out))
    splits = {
        "train": train,
        "calibration": _part(train, calibration),
        "search": _part(held_out, order[:SEARCH]),
        "test": _part(held_out, order[SEARCH : SEARCH + test]),
    }
    return Task("resnet20", network, splits, source=SOURCE, tied=GROUPS)


def _part(split: Split, indices: np.ndarray) -> Split:
    chosen = torch.from_numpy(indices)
    return Split(split.inputs[chosen], split.labels[chosen])


def read_images(path: Path) -> tuple[Split, Split]:
    """Decodes the archive's images; classes are numbered in alphabetical order.

    Returns:
        Those of ``train/<class>/`` and of ``test/<class>/``, normalised, float32 (N, 3, 32, 32).

    Raises:
        QuantenvError: If the archive is missing or damaged, or holds other images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            train, held_out = _decoded(archive, "train"), _decoded(archive, "test")
    except (
        *(OSError, EOFError, RuntimeError, ValueError, SyntaxError, KeyError, struct.error, zlib.error),
        *(zipfile.BadZipFile, Image.DecompressionBombError),
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise QuantenvError(f"Cannot read the data of task 'resnet20' in {path}: {reason}") from error
    return train, held_out


def _decoded(archive: zipfile.ZipFile, part: str) -> Split:
    found = sorted((entry for entry in archive.infolist() if _is_image(entry, part)), key=lambda entry: entry.filename)
    labels = [entry.filename.split("/")[1] for entry in found]
    classes = sorted(set(labels))
    if not 1 <= len(classes) <= CLASSES:
        raise ValueError(f"the archive holds {part} images of {len(classes)} classes; expected 1 to {CLASSES}")
    pixels = np.stack([_pixels(archive, entry) for entry in found])
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
    inputs = inputs.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
    return Split(inputs, torch.tensor([classes.index(label) for label in labels]))


def _is_image(entry: zipfile.ZipInfo, part: str) -> bool:
    return entry.filename.startswith(f"{part}/") and entry.filename.endswith(".jpg")


def _pixels(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.file_size > MOST_JPEG:
        raise ValueError(f"{entry.filename[:80]!r} would unpack to {entry.file_size:,} bytes")
    image: Image.Image = Image.open(io.BytesIO(archive.read(entry)), formats=["JPEG"])
    if image.size != (SIDE, SIDE):  # before it is decoded
        raise ValueError(f"{entry.filename[:80]!r} has {image.size} pixels; expected {SIDE} by {SIDE}")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
