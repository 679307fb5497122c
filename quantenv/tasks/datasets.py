"""A task from any network and two data sets."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from quantenv.errors import QuantenvError
from quantenv.tasks.base import Split, Task, sample_digest

logger = logging.getLogger(__name__)


def task_from_datasets(
    network: nn.Module,
    train: Dataset[Any],
    held_out: Dataset[Any],
    name: str = "own",
    *,
    train_samples: int | None = None,
    calibration_samples: int = 512,
    search_samples: int = 2000,
    test_samples: int | None = None,
    scheme: str = "linear",
    source: str = "",
    seed: int = 0,
) -> Task:
    """Makes a task of a trained network and the data it was and was not trained on.

    Calibration is a part of `train`; search and test are disjoint parts of `held_out`, since accuracy on what a network
    was trained on would say little about an allocation. Samples that occur twice are kept once: of those that occur in
    both data sets, the held-out one. Each sample that is used is read once, and kept in memory as float32.

    Args:
        network: Maps a batch of inputs to logits.
        train: Samples (input, class), by index and with a length: what the network was trained on. Inputs are tensors
            as the network takes them, without random augmentation.
        held_out: Samples that the network was not trained on.
        name: Name used in logs, allocation files and run folders.
        train_samples: Samples of `train` to keep for fine-tuning, drawn at random; None keeps all. Take fewer of large
            images: 10,000 of 224 x 224 take 6 GB.
        calibration_samples: Of those, samples that ranges are calibrated on, at most.
        search_samples: Samples of `held_out` that rewards are measured on; at most half of them.
        test_samples: Samples of the rest that are reported on once; None keeps all.
        scheme: Quantizer of weights and activations.
        source: Where the data come from, for the provenance of what is made from them.
        seed: Draws the parts. Same seed and data, same task.

    Returns:
        The task; its identity is a hash of its content.

    Raises:
        QuantenvError: If a number is out of range, a data set is too small, or its samples are no pairs of a tensor and
            a class.
    """
    numbers = {
        "train_samples": train_samples,
        "calibration_samples": calibration_samples,
        "search_samples": search_samples,
        "test_samples": test_samples,
    }
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise QuantenvError(f"{key} is {number}; expected a whole number of at least 1.")
    rng = np.random.default_rng(seed)
    training = rng.permutation(_length(train, "train"))[:train_samples]
    evaluation = rng.permutation(_length(held_out, "held_out"))
    if len(evaluation) < 2:
        raise QuantenvError("The held-out data set has one sample; expected at least 2, one to search on, one to test.")
    searching = min(search_samples, len(evaluation) // 2)
    end = None if test_samples is None else searching + test_samples
    seen: set[bytes] = set()
    test = _read(held_out, evaluation[searching:end], "held_out", seen)
    search = _read(held_out, evaluation[:searching], "held_out", seen)
    fine_tuning = _read(train, training, "train", seen)
    calibration = Split(fine_tuning.inputs[:calibration_samples], fine_tuning.labels[:calibration_samples])
    splits = {"train": fine_tuning, "calibration": calibration, "search": search, "test": test}
    return Task(name, network, splits, scheme=scheme, source=source)


def _length(data: Any, name: str) -> int:
    try:
        length = len(data)
    except TypeError as error:
        raise QuantenvError(
            f"The data set {name} ({type(data).__name__}) has no length; expected samples by index, and len()."
        ) from error
    if not length:
        raise QuantenvError(f"The data set {name} is empty.")
    return length


def _read(data: Any, indices: Sequence[int] | np.ndarray, name: str, seen: set[bytes]) -> Split:
    """Reads samples into memory, without those whose inputs were seen before."""
    inputs: list[torch.Tensor] = []
    labels: list[int] = []
    for index in map(int, indices):
        sample = data[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2 or not isinstance(sample[0], torch.Tensor):
            raise QuantenvError(
                f"Sample {index} of the data set {name} is no pair of a tensor and a class. Give the data set a "
                "transform that ends with tensors, such as torchvision.transforms.ToTensor()."
            )
        value = sample[0].float()
        if inputs and value.shape != inputs[0].shape:
            raise QuantenvError(
                f"Samples of the data set {name} differ in shape: {tuple(inputs[0].shape)} and {tuple(value.shape)}. "
                "Give it a transform that makes them alike, such as a resize and a centre crop."
            )
        content = sample_digest(value)
        if content not in seen:
            seen.add(content)
            inputs.append(value)
            labels.append(int(sample[1]))
    if not inputs:
        raise QuantenvError(f"All samples drawn from the data set {name} occur elsewhere; expected other ones.")
    if len(inputs) < len(indices):
        logger.info("Left out %d samples of %s that occur twice.", len(indices) - len(inputs), name)
    return Split(torch.stack(inputs), torch.tensor(labels))
