"""The embedded default task: scikit-learn's bundled 8x8 digits and a small depthwise-separable network."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantenv.errors import QuantenvError
from quantenv.files import cache_dir, content_hash
from quantenv.tasks.base import Split, Task
from quantenv.tasks.training import TrainingRecipe, train_float
from quantenv.tensor_file import WEIGHTS_FORMAT, read_tensors, write_tensors

logger = logging.getLogger(__name__)

#: Samples of the splits; the calibration split is the first part of train. 1,797 images in all.
TRAIN, CALIBRATION, SEARCH = 897, 256, 450
SPLIT_SEED = 0
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
    """Loads the digits and splits them by a fixed permutation into train, calibration, search and test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(labels)))
    parts = {
        "train": order[:TRAIN],
        "calibration": order[:CALIBRATION],
        "search": order[TRAIN : TRAIN + SEARCH],
        "test": order[TRAIN + SEARCH :],
    }
    return {name: Split(inputs[part], labels[part]) for name, part in parts.items()}


def make_digits() -> Task:
    """Makes the digits task; the float network is trained on first use (seconds) and cached by content."""
    splits = digits_splits()
    return Task("digits", _pretrained(splits["train"], TrainingRecipe()), splits, source=SOURCE)


def _pretrained(train: Split, recipe: TrainingRecipe) -> nn.Module:
    """Loads the trained network from the cache, or trains it and puts it there."""
    key = content_hash(
        [
            train.inputs.numpy().tobytes(),
            train.labels.numpy().tobytes(),
            json.dumps(dataclasses.asdict(recipe)),
            str(DigitsNet()),
            torch.__version__,
        ]
    )
    path = cache_dir() / "weights" / f"digits-{key}.safetensors"
    if path.exists():
        network = _load(path)
        if network is not None:
            return network
    logger.info("Training the float digits network (%d epochs, seconds).", recipe.epochs)
    network = train_float(DigitsNet, train, recipe)
    write_tensors(path, WEIGHTS_FORMAT, {}, network.state_dict())
    return network


def _load(path: Path) -> nn.Module | None:
    """Reads a cached network; a damaged file is moved aside with a warning."""
    network = DigitsNet()
    try:
        _, state = read_tensors(path, WEIGHTS_FORMAT, "a file of weights", "It is made again.")
        network.load_state_dict(state)
    except (QuantenvError, RuntimeError):
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        logger.warning("The cached weights %s are damaged; moved to %s and trained anew.", path.name, aside.name)
        return None
    return network.eval()
