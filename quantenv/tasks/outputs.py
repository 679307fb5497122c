"""What a network makes of a batch: logits by sample, or a sentence about what it makes instead."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from quantenv.core.errors import UnsupportedLayerError

#: Difference of one sample's logits between two batches, as a share of the largest, that is not rounding.
TOLERANCE = 1e-3


def count_classes(network: nn.Module, inputs: torch.Tensor) -> int:
    """Runs a network on a few samples and returns how many classes it tells apart.

    Args:
        network: The network; it is run in eval mode, and is then as before.
        inputs: Two samples or more, float32 (B, ...). They are not changed.

    Raises:
        UnsupportedLayerError: If it does not run on them, puts out anything but finite logits (B, classes) of two
            classes or more, changes its inputs in place, or what it says of a sample depends on the others.
    """
    with _evaluating(network):
        return _count_classes(network, inputs)


def _count_classes(network: nn.Module, inputs: torch.Tensor) -> int:
    name = type(network).__name__
    given = inputs.clone()
    outputs = _run(network, given)
    if not torch.equal(given, inputs):
        raise UnsupportedLayerError(
            f"{name} changes its inputs in place, so they would be others at the next evaluation. Let its first step "
            "make a new tensor: x = x - mean in place of x -= mean, nn.ReLU() in place of nn.ReLU(inplace=True)."
        )
    if not isinstance(outputs, torch.Tensor):
        what = f"a {type(outputs).__name__}"
        keys = list(outputs) if isinstance(outputs, dict) else getattr(outputs, "_fields", ())
        held = f" of {', '.join(map(str, keys))[:80]}" if keys else ""
        raise UnsupportedLayerError(
            f"{name} puts out {what}{held}; expected one tensor of logits, (B, classes). Wrap it in a module whose "
            "forward returns the logits, such as self.network(x)['logits'] or self.network(x)[0]."
        )
    shape, count = tuple(outputs.shape), len(inputs)
    made = f"Of {count} samples {name} makes an output of shape {shape}; expected logits, ({count}, classes)."
    if not shape or shape[0] != count:
        raise UnsupportedLayerError(
            f"{made} Its first dimension must stay that of the samples: look for a mean, "
            "a squeeze or a transpose over it."
        )
    if len(shape) == 1 or shape[1:] == (1,):
        raise UnsupportedLayerError(
            f"{made} One logit z for two classes is the same as two: return "
            "torch.cat([torch.zeros_like(z), z], 1) with z of shape (B, 1). Regression has no accuracy."
        )
    if len(shape) > 2:
        raise UnsupportedLayerError(
            f"{made} Only classification of whole samples is measured here, not of pixels "
            "or tokens: pool or flatten what the last layer makes."
        )
    if not outputs.is_floating_point():
        raise UnsupportedLayerError(f"{name} puts out {outputs.dtype}; expected logits, without an argmax behind them.")
    if torch.isnan(outputs).any() or torch.isposinf(outputs).any():
        tensors = (*network.named_parameters(), *network.named_buffers())
        wrong = [repr(key) for key, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]
        cause = f" {', '.join(wrong)[:200]} hold NaN or infinity: load sound weights." if wrong else ""
        raise UnsupportedLayerError(
            f"{name} puts out NaN or infinity for finite inputs.{cause or ' Look at its normalisation of them.'}"
        )
    _check_independent(network, name, inputs, outputs)
    return shape[1]


def takes_whole_numbers(network: nn.Module, sample: torch.Tensor) -> bool:
    """Whether a network takes an input of whole numbers itself, and makes the same of it as float32."""
    batch = torch.stack([sample, sample])
    try:
        with torch.no_grad(), _evaluating(network):
            return torch.equal(network(batch.clone()), network(batch.float()))
    except Exception:  # a network's forward is the user's, which may fail in any way: then it does not take them
        return False


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run(network: nn.Module, inputs: torch.Tensor) -> object:
    try:
        with torch.no_grad():
            return network(inputs)
    except UnsupportedLayerError:
        raise
    except Exception as error:  # a network's forward is the user's, which may fail in any way
        types = {p.dtype for p in network.parameters()} - {inputs.dtype}
        devices = {p.device.type for p in network.parameters()} - {"cpu"}
        hint = f" Its weights are {types.pop()}, inputs {inputs.dtype}: call .float() first." if types else ""
        hint = f" Its weights are on {devices.pop()}: call .cpu() first." if devices else hint
        raise UnsupportedLayerError(
            f"{type(network).__name__} does not run on an input of shape {','.join(map(str, inputs.shape[1:]))}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}. It is called with a batch of "
            f"inputs and nothing else.{hint}"
        ) from error


def _check_independent(network: nn.Module, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Checks that the first sample's logits are the same in another batch of as many samples."""
    others = inputs[:1].expand(inputs.shape).clone()
    others[0] = inputs[0]
    again = _run(network, others)
    assert isinstance(again, torch.Tensor)
    size = outputs[0].isfinite().logical_and(again[0].isfinite())
    first, second = outputs[0][size], again[0][size]
    if len(first) and (first - second).abs().max() > TOLERANCE * first.abs().max():
        norms = [key for key, module in network.named_modules() if getattr(module, "running_mean", 0) is None]
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        norms = [key for key in norms if isinstance(network.get_submodule(key), kinds)]
        where = f" (here: {', '.join(map(repr, norms))[:80]})" if norms else ""
        raise UnsupportedLayerError(
            f"What {name} says of a sample depends on the other samples of its batch, or is random, so no accuracy is "
            f"its own: look for batch norms without running statistics{where}, dropout that stays on in eval mode, or "
            "a mean, softmax or attention over the first dimension."
        )
