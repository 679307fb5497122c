"""What a sample may be: a dense float input and one class, or a sentence that names it."""

import logging
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quantenv.core.errors import QuantenvError

logger = logging.getLogger(__name__)

#: No data set has as many classes, or samples.
MOST = 2**31


def plain_tensor(value: Any, where: str) -> torch.Tensor:
    """Returns an input as a dense tensor of real numbers on the CPU, without gradients.

    Args:
        value: A tensor, or a NumPy array of numbers.
        where: Names it, at the start of messages.

    Raises:
        QuantenvError: If it is anything else.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, torch.Tensor):
        raise QuantenvError(
            f"{where} is a {type(value).__name__}, not a tensor. Give it as one, such as by a transform that ends with "
            "torchvision.transforms.ToTensor()."
        )
    if value.layout != torch.strided or value.is_nested:
        raise QuantenvError(f"{where} is a sparse or nested tensor; give it dense, by .to_dense().")
    value = value.detach().as_subclass(torch.Tensor)
    if value.is_complex():
        raise QuantenvError(
            f"{where} holds complex numbers; networks here take real ones. Give real and imaginary parts as channels, "
            "by torch.view_as_real, to a network that takes them so."
        )
    if value.is_quantized or value.is_meta or not value.numel():
        nature = "empty" if not value.numel() else "a quantized tensor" if value.is_quantized else "on device meta"
        raise QuantenvError(f"{where} is {nature}; expected numbers that the float network takes.")
    return value.cpu()


def as_float32(value: torch.Tensor, where: str) -> torch.Tensor:
    """Returns a plain tensor as float32.

    Raises:
        QuantenvError: If it holds numbers that are not finite, or whole ones that float32 does not hold exactly.
    """
    result = value.float()
    if not value.is_floating_point() and not torch.equal(result.to(value.dtype), value):
        raise QuantenvError(f"{where} holds whole numbers above 2**24, which float32 rounds: give other inputs.")
    if not torch.isfinite(result).all():
        raise QuantenvError(f"{where} holds NaN, infinity or a number beyond float32: mend or leave out that sample.")
    return result


def class_of(label: Any, where: str) -> tuple[int, bool]:
    """Returns a label's class, and whether it was given as a float.

    Args:
        label: A whole number in any form: Python's, NumPy's, or a tensor or array of one element.
        where: Names the sample, at the start of messages.

    Raises:
        QuantenvError: If it is no single whole number.
    """
    value = label
    single = isinstance(value, np.ndarray | np.generic) and value.size == 1
    if isinstance(value, torch.Tensor):
        single = not value.is_meta and value.layout == torch.strided and value.numel() == 1
    if single:
        value = value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        raise QuantenvError(
            f"{where} has a label of shape {tuple(value.shape)}; expected its class, one whole number. Of one-hot "
            "labels give the index, by argmax; soft labels and several labels are for training only, and labels of "
            "pixels or tokens are not measured here."
        )
    if not isinstance(value, numbers.Integral | float):
        shown = repr(value) if isinstance(value, str | bytes | None) else f"a {type(value).__name__}"
        raise QuantenvError(
            f"{where} has the label {shown[:80]}; expected its class, a whole number from 0. Number the classes, as by "
            "sorted(names).index(name)."
        )
    if isinstance(value, float) and not value.is_integer():
        kind = "Targets of a regression have no accuracy" if math.isfinite(value) else "Leave that sample out"
        raise QuantenvError(f"{where} has the label {value}; expected its class, a whole number from 0. {kind}.")
    number = int(value)
    if abs(number) > MOST:
        raise QuantenvError(f"{where} has the label {str(number)[:40]}; expected its class, a whole number from 0.")
    return number, isinstance(value, float)


def class_indices(labels: Any, count: int) -> torch.Tensor:
    """Returns the labels of a split as int64 (N,).

    Args:
        labels: Whole numbers, one for each input, (N,), (N, 1), ...: a tensor or an array.
        count: Inputs that they belong to.

    Raises:
        QuantenvError: If they are anything else.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf":
        labels = torch.from_numpy(np.array(labels, dtype=labels.dtype.newbyteorder("=")))
    if isinstance(labels, torch.Tensor) and (labels.is_nested or labels.layout != torch.strided):
        raise QuantenvError("A split's labels are a sparse or nested tensor; give classes, a dense tensor (N,).")
    if not isinstance(labels, torch.Tensor) or not labels.shape or labels.is_complex() or labels.is_meta:
        nature = str(labels.dtype) if hasattr(labels, "dtype") else type(labels).__name__
        raise QuantenvError(f"A split's labels are {nature}; expected a tensor of classes, whole numbers from 0, (N,).")
    if len(labels) != count or not count:
        raise QuantenvError(
            f"A split needs as many labels as inputs and at least one sample: got {count} inputs and {len(labels)} "
            "labels."
        )
    if labels[0].numel() != 1:
        class_of(labels[0], "Sample 0 of a split")
    labels = labels.flatten()
    if labels.is_floating_point():
        for index in torch.nonzero(~(labels == labels.trunc()) | (labels.abs() > MOST))[:1, 0].tolist():
            class_of(labels[index], f"Sample {index} of a split")
        logger.warning("Labels of a split are whole numbers in floats: taken for classes.")
    return labels.detach().cpu().to(torch.int64)


def check_classes(labels: torch.Tensor, classes: int, name_of: Callable[[int], str]) -> None:
    """Checks that a network has an output for every label.

    Args:
        labels: Classes, int64 (N,).
        classes: Outputs of the network.
        name_of: Names a sample by its position.

    Raises:
        QuantenvError: If it lacks one, or a label is negative; the first such sample is named.
    """
    wrong = torch.nonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        index = int(wrong[0])
        raise QuantenvError(
            f"{name_of(index)} has the label {int(labels[index])}, but the network has {classes} outputs, for the "
            f"classes 0 to {classes - 1}. Number classes from 0 (subtract 1 if yours begin at 1; leave samples out "
            "that mean nothing), or bring a network for all of them."
        )
