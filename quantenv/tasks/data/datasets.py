"""A task from any network and two data sets."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from quantenv.core.errors import QuantenvError
from quantenv.graph.plain_network import plain_network
from quantenv.tasks.base import DEFAULT_SCHEME, Split, Task, sample_digest
from quantenv.tasks.data.samples import MOST, as_float32, check_classes, class_of, plain_tensor
from quantenv.tasks.outputs import count_classes, takes_whole_numbers

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
    scheme: str = DEFAULT_SCHEME,
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
            or arrays as the network takes them, without random augmentation: whole numbers only if it takes them
            itself, and makes the same of them as of the same numbers in float32. Classes are whole numbers from 0. A
            DataLoader stands for its data set, unless it chooses or changes samples.
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
        QuantenvError: If a number is out of range, a data set is too small or cannot be read by index, or one of its
            samples is no pair of a tensor of finite numbers and a class that the network has an output for.
        UnsupportedLayerError: If the network does not make logits (B, classes) of a batch of samples, each by itself.
    """
    numbers = {
        "train_samples": train_samples,
        "calibration_samples": calibration_samples,
        "search_samples": search_samples,
        "test_samples": test_samples,
    }
    for key, number in numbers.items():
        if number is not None and (not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1):
            raise QuantenvError(f"{key} is {number!r}; expected a whole number of at least 1.")
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise QuantenvError(f"seed is {seed!r}; expected a whole number of at least 0.")
    if not isinstance(network, nn.Module):
        raise QuantenvError(f"The network is a {type(network).__name__}; expected a torch.nn.Module.")
    rng = np.random.default_rng(seed)
    train, held_out = by_index(train, "train"), by_index(held_out, "held_out")
    training = rng.permutation(_length(train, "train"))[:train_samples]
    evaluation = rng.permutation(_length(held_out, "held_out"))
    if len(evaluation) < 2:
        raise QuantenvError("The held-out data set has one sample; expected at least 2, one to search on, one to test.")
    searching = min(search_samples, len(evaluation) // 2)
    end = None if test_samples is None else searching + test_samples
    seen: set[bytes] = set()
    test = _read(network, held_out, evaluation[searching:end], "held_out", seen)
    search = _read(network, held_out, evaluation[:searching], "held_out", seen)
    few = torch.cat([test.inputs[:2], search.inputs[:1]])
    classes = count_classes(plain_network(network, few), few)
    fine_tuning = _read(network, train, training, "train", seen)
    for part in (test, search, fine_tuning):
        check_classes(part.labels, classes, part.name_of)
    splits = {"train": fine_tuning.split, "search": search.split, "test": test.split}
    whole = splits["train"]
    splits["calibration"] = Split(whole.inputs[:calibration_samples], whole.labels[:calibration_samples])
    return Task(name, network, splits, scheme=scheme, source=source)


def by_index(data: Any, name: str) -> Any:
    """Returns a data set that gives samples by index; of a DataLoader that loads one sample after another, its own.

    Args:
        data: A data set, or a DataLoader of one.
        name: What the data set is called in messages.

    Raises:
        QuantenvError: If samples can only be iterated over, or a DataLoader chooses or changes them.
    """
    if isinstance(data, DataLoader):
        every = type(data.sampler) is SequentialSampler or (
            isinstance(data.sampler, RandomSampler) and not data.sampler.replacement
        )
        samples = data.dataset
        plain = data.collate_fn in (default_collate, default_convert)
        if not isinstance(samples, IterableDataset):
            if not every or len(data.sampler) != _length(samples, name) or not _plain_batches(data):  # type: ignore
                raise QuantenvError(
                    f"The DataLoader {name} has a sampler of its own ({type(data.sampler).__name__}): give the samples "
                    "themselves, such as torch.utils.data.Subset(dataset, indices)."
                )
            if not plain:
                raise QuantenvError(
                    f"The DataLoader {name} has a collate_fn of its own, which may change samples: give a data set "
                    "whose samples are pairs of a tensor and a class."
                )
        return by_index(samples, name)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        raise QuantenvError(
            f"The data set {name} ({type(data).__name__}) can only be iterated over, has no length or no index; "
            "expected samples by index, and len(). If it fits into memory, give list(dataset)."
        )
    return data


def _plain_batches(loader: DataLoader[Any]) -> bool:
    return loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler


def _length(data: Any, name: str) -> int:
    try:
        length = len(data)
    except Exception as error:  # a data set is the user's, which may fail in any way
        raise QuantenvError(
            f"The data set {name} ({type(data).__name__}) has no length; expected samples by index, and len()."
        ) from error
    if not length:
        raise QuantenvError(f"The data set {name} is empty.")
    if length > MOST:
        raise QuantenvError(
            f"The data set {name} has {length:,} samples; expected {MOST:,} at most: give a part of them, such as "
            "torch.utils.data.Subset(dataset, indices)."
        )
    return length


@dataclass(frozen=True)
class _Part:
    """Samples read of a data set."""

    data: str
    """The data set's name."""
    indices: list[int]
    """Where each was in it."""
    inputs: torch.Tensor
    """Float32, (N, ...)."""
    labels: torch.Tensor
    """Int64, (N,)."""

    def name_of(self, position: int) -> str:
        """Names a sample by its place in the data set."""
        return f"Sample {self.indices[position]} of the data set {self.data}"

    @property
    def split(self) -> Split:
        """The samples as a split."""
        return Split(self.inputs, self.labels)


def _read(network: nn.Module, data: Any, indices: np.ndarray, name: str, seen: set[bytes]) -> _Part:
    """Reads samples into memory, without those whose inputs were seen before."""
    inputs = torch.empty(0)
    labels: list[int] = []
    kept: list[int] = []
    floats, whole = False, None
    for index in map(int, indices):
        where = f"Sample {index} of the data set {name}"
        value, label = _pair(data, index, where)
        if not value.is_floating_point() and value.dtype != whole:
            whole = _whole(network, value, where)
        if not kept:
            inputs = torch.empty((len(indices), *value.shape), dtype=torch.float32)
        if value.shape != inputs.shape[1:]:
            raise QuantenvError(
                f"Samples of the data set {name} differ in shape: {tuple(inputs.shape[1:])} and, of sample {index}, "
                f"{tuple(value.shape)}. Give it a transform that makes them alike, such as a resize and a centre crop."
            )
        value = as_float32(value, f"The input of s{where[1:]}")
        number, is_float = class_of(label, where)
        floats |= is_float
        content = sample_digest(value)
        if content not in seen:
            seen.add(content)
            inputs[len(kept)] = value  # a copy: some data sets give one buffer again and again
            labels.append(number)
            kept.append(index)
    if not kept:
        raise QuantenvError(f"All samples drawn from the data set {name} occur elsewhere; expected other ones.")
    if floats:
        logger.warning("Labels of the data set %s are whole numbers in floats: taken for classes.", name)
    if len(kept) < len(indices):
        logger.info("Left out %d samples of %s that occur twice.", len(indices) - len(kept), name)
        inputs = inputs[: len(kept)].clone()
    return _Part(name, kept, inputs, torch.tensor(labels))


def _whole(network: nn.Module, value: torch.Tensor, where: str) -> torch.dtype:
    """Returns the type of an input of whole numbers that the network takes."""
    if not takes_whole_numbers(network, value):
        raise QuantenvError(
            f"The input of s{where[1:]} is {str(value.dtype).removeprefix('torch.')}, which {type(network).__name__} "
            "does not take, or not as it takes float32: give inputs as it was trained on, such as images scaled to "
            "[0, 1] and normalised."
        )
    return value.dtype


def _pair(data: Any, index: int, where: str) -> tuple[torch.Tensor, Any]:
    """Reads a sample; returns its input as a plain tensor, and its label."""
    try:
        sample = data[index]
    except QuantenvError:
        raise
    except Exception as error:  # a data set is the user's, which may fail in any way
        reason = (str(error).splitlines() or [""])[0].rstrip(".")[:200]
        raise QuantenvError(f"{where} cannot be read: {type(error).__name__}: {reason}.") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        made = f"{len(sample)} things" if isinstance(sample, tuple | list) else f"a {type(sample).__name__}"
        raise QuantenvError(
            f"{where} is no pair of a tensor and a class but {made}. Wrap the data set in one whose samples are "
            "(input, class); of two tensors make one by torch.utils.data.TensorDataset(inputs, classes)."
        )
    return plain_tensor(sample[0], f"The input of s{where[1:]}"), sample[1]
