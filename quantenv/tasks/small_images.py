"""The tasks `cifar10`, `cifar100`, `fashionmnist` and `mnist`: torchvision's data sets of small images."""

import functools
import http.client
import os
import pickle
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import cache_dir
from quantenv.tasks.base import Task
from quantenv.tasks.data.datasets import task_from_datasets
from quantenv.tasks.networks.cifar import NETWORKS
from quantenv.tasks.networks.models import DEFAULT
from quantenv.tasks.networks.state_dicts import load_weights
from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.resnet20 import DATA_VARIABLE
from quantenv.tasks.source import TaskSource

DEFAULT_NETWORK = "resnet20"
#: What reading a data set that is missing or damaged raises in torchvision.
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, AssertionError, pickle.UnpicklingError)
_UNREACHABLE = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError)


@dataclass(frozen=True)
class SmallImages:
    """One of torchvision's data sets."""

    kind: str
    """Class in `torchvision.datasets`."""
    folder: str
    """Folder that it makes within the one it is given."""
    classes: int
    """Number of classes."""
    mean: tuple[float, ...]
    """Of the training images in [0, 1], by channel."""
    std: tuple[float, ...]
    """Standard deviation of the same."""
    flipped: bool = True
    """Whether an image means the same when it is mirrored left to right."""


DATA_SETS = {
    "cifar10": SmallImages("CIFAR10", "cifar-10-batches-py", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": SmallImages("CIFAR100", "cifar-100-python", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashionmnist": SmallImages("FashionMNIST", "FashionMNIST", 10, (0.2860,), (0.3530,)),
    "mnist": SmallImages("MNIST", "MNIST", 10, (0.1307,), (0.3081,), flipped=False),
}


def pretrained_file(name: str, model: str) -> Path:
    """Returns where `quantenv pretrain` puts the weights of a task's network and the task looks for them."""
    return cache_dir() / "weights" / f"{name}-{model}.safetensors"


def make_small_images(name: str, source: TaskSource) -> Task:
    """Makes a task of pretrained weights.

    Args:
        name: A name of `DATA_SETS`.
        source: `data`, the folder that holds the data set; `model`, a name of
            `quantenv.tasks.networks.cifar.NETWORKS`; `weights`, a file, by default that of `quantenv pretrain`.

    Raises:
        QuantenvError: If the network is unknown, it was not trained yet, or the data cannot be had.
    """
    model = source.model or DEFAULT_NETWORK
    if source.weights == DEFAULT:
        raise QuantenvError(
            f"Nobody publishes weights of {model} for task {name!r}: leave --weights out or give a file."
        )
    with torch.random.fork_rng(devices=[]):
        network = random_network(name, model)
    weights = Path(source.weights) if source.weights else pretrained_file(name, model)
    if source.weights is None and not weights.is_file():
        raise QuantenvError(
            f"Task {name!r} needs a trained {model}: run `quantenv pretrain --task {name} --model {model}` first, or "
            "give the file of a state dict by --weights."
        )
    load_weights(network, weights)
    return task_of(name, source.data, network)


def random_network(name: str, model: str) -> nn.Module:
    """Makes a task's network with random weights, drawn with torch's own generator.

    Raises:
        QuantenvError: If the network is unknown.
    """
    if model not in NETWORKS:
        raise unknown_name(f"network of task {name!r}:", model, NETWORKS)
    return NETWORKS[model](len(DATA_SETS[name].mean), DATA_SETS[name].classes)


def task_of(name: str, data: str | None, network: nn.Module) -> Task:
    """Makes a task of any network for these images.

    Training images are the train split and, 512 of them, calibration; 2,000 of the test images are the search split,
    the others the test split.

    Args:
        name: A name of `DATA_SETS`.
        data: Folder that holds the data set; by default ``$QUANTENV_DATA`` if it does, else the cache, to which it is
            downloaded.
        network: Maps images to logits.

    Raises:
        QuantenvError: If the data cannot be had.
    """
    root = _find(name, data)
    train, held_out = (_read(name, root, train) for train in (True, False))
    return task_from_datasets(network, train, held_out, name, source=f"{DATA_SETS[name].kind} of torchvision.")


def _find(name: str, data: str | None) -> Path:
    """Returns a folder that holds the data set, downloaded if there is none."""
    wanted = DATA_SETS[name]
    if data is not None:
        if not (Path(data) / wanted.folder).is_dir():
            raise QuantenvError(f"--data {data} holds no {wanted.kind}: expected the folder {wanted.folder} in it.")
        return Path(data)
    cache = cache_dir() / "data"
    for root in (os.environ.get(DATA_VARIABLE), cache):
        if root and (Path(root) / wanted.folder).is_dir():
            return Path(root)
    _download(wanted, cache)
    return cache


def _download(wanted: SmallImages, root: Path) -> None:
    """Downloads a data set aside and renames its folder, so that a broken download is never taken for one."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{wanted.folder}.") as aside:
            for train in (True, False):
                _open(wanted, Path(aside), train, download=True)
            try:
                os.replace(Path(aside) / wanted.folder, root / wanted.folder)
            except OSError:
                if not (root / wanted.folder).is_dir():  # else another process was faster
                    raise
    except _UNREACHABLE as error:
        raise QuantenvError(
            f"Cannot download {wanted.kind}: {_reason(error)}. Download it where there is a network, and name the "
            f"folder that holds {wanted.folder} by --data or {DATA_VARIABLE}."
        ) from error


def _open(wanted: SmallImages, root: Path, train: bool, download: bool = False) -> Any:
    return getattr(torchvision().datasets, wanted.kind)(root, train=train, download=download)


def _read(name: str, root: Path, train: bool) -> TensorDataset:
    """Reads images into memory, normalised, float32 (N, channels, H, W)."""
    wanted = DATA_SETS[name]
    try:
        read = _open(wanted, root, train)
        pixels, labels = torch.as_tensor(read.data), torch.as_tensor(read.targets, dtype=torch.int64)
    except _UNREADABLE as error:
        raise QuantenvError(
            f"Cannot read {wanted.kind} in {root / wanted.folder}: {_reason(error)}. Remove or replace that folder."
        ) from error
    channels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (wanted.mean, wanted.std))
    return TensorDataset(channels.float().div_(255).sub_(mean).div_(std).contiguous(), labels)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


make_cifar10 = functools.partial(make_small_images, "cifar10")
make_cifar100 = functools.partial(make_small_images, "cifar100")
make_fashionmnist = functools.partial(make_small_images, "fashionmnist")
make_mnist = functools.partial(make_small_images, "mnist")
