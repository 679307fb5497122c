"""The embedded default task: scikit-learn's bundled 8x8 digits and a small depthwise-separable network."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantenv.core.tensor_file import read_tensors
from quantenv.tasks.base import Split, Task
from quantenv.tasks.shipped import REMEDY, shipped_network

#: Samples of the splits; the calibration split is the first part of train. 1,797 images in all.
TRAIN, CALIBRATION, SEARCH = 897, 256, 450
SPLIT_SEED = 0
#: The images, uint8 (N, 8, 8) from 0 to 16, and labels, uint8 (N,); `experiments.studies.ship_images` wrote them.
IMAGES, IMAGES_FORMAT = Path(__file__).parent / "data" / "digits.safetensors", "quantenv-images-1"
SOURCE = "scikit-learn's bundled digits: the test part of UCI's Optical Recognition of Handwritten Digits, 8x8 grey."


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with a batch norm (Howard et al. 2017, MobileNets)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = self.relu(self.depthwise_norm(self.depthwise(x)))
        y = self.pointwise_norm(self.pointwise(y))
        return self.relu(y + x) if self.residual else self.relu(y)


class DigitsNet(nn.Module):
    """Stem, three separable blocks (the second with a residual add), pooling, classifier: 8 quantizable layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.block1 = SeparableBlock(12, 24, stride=2)
        self.block2 = SeparableBlock(24, 24, residual=True)
        self.block3 = SeparableBlock(24, 48)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, 1, 8, 8) in [0, 1] to logits (B, 10)."""
        x = self.relu(self.stem_norm(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


def digits_splits() -> dict[str, Split]:
    """Loads the digits and splits them by a fixed permutation into train, calibration, search and test.

    Raises:
        QuantenvError: If the file of images is missing or damaged.
    """
    _, data = read_tensors(IMAGES, IMAGES_FORMAT, "the images of task 'digits'", REMEDY)
    inputs, labels = data["images"].float()[:, None] / 16, data["labels"].long()
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(labels)))
    parts = {
        "train": order[:TRAIN],
        "calibration": order[:CALIBRATION],
        "search": order[TRAIN : TRAIN + SEARCH],
        "test": order[TRAIN + SEARCH :],
    }
    return {name: Split(inputs[part], labels[part]) for name, part in parts.items()}


def make_digits() -> Task:
    """Makes the digits task; its float network ships with the package (`experiments.studies.ship_weights` trained it).

    Raises:
        QuantenvError: If the file of weights or of images is damaged.
    """
    return Task("digits", shipped_network("digits", DigitsNet), digits_splits(), source=SOURCE)
