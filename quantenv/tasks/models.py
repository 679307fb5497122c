"""Networks by name: ``torchvision:resnet18``, or ``your_package.your_module:make_network``."""

import importlib
import pickle
import urllib.error
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantenv.errors import QuantenvError, unknown_name
from quantenv.tasks.vision import torchvision

TORCHVISION = "torchvision"
#: The weights that torchvision publishes for a network, its best.
DEFAULT = "DEFAULT"


def make_network(
    model: str, weights: str | None = None, classes: int | None = None, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Makes a network by name.

    Args:
        model: ``torchvision:NAME``, a classification network of torchvision; or ``module:function``, a function of
            yours that returns the network.
        weights: Path of a state dict, a file of `torch.save`; ``DEFAULT`` for those that torchvision publishes; None
            for random ones, drawn with torch's own generator.
        classes: Outputs of the network; None means its default, 1,000 for torchvision's. Published weights keep theirs.
        arguments: Further arguments of the constructor, such as ``{"image_size": 32}`` for ``torchvision:vit_b_16``.

    Returns:
        The network, in eval mode.

    Raises:
        QuantenvError: If the model is unknown or cannot be made of these arguments, or the weights cannot be read or do
            not fit.
    """
    module, separator, name = model.partition(":")
    if not separator or not module or not name:
        raise QuantenvError(
            f"Model {model!r} is not of the form torchvision:NAME or module:function, "
            "such as torchvision:mobilenet_v2 or my_networks:make_network."
        )
    given = dict(arguments or {})
    published = weights == DEFAULT
    if published and module != TORCHVISION:
        raise QuantenvError(f"Only torchvision publishes weights; give model {model!r} the file of its own.")
    if classes is not None and not published:
        given.setdefault("num_classes", classes)
    try:
        network = _torchvision(name, published, given) if module == TORCHVISION else _own(model, module, name, given)
    except (TypeError, ValueError) as error:
        if isinstance(error, QuantenvError):
            raise
        raise QuantenvError(f"Cannot make {model} of the arguments {given}: {error}") from error
    if weights is not None and not published:
        load_weights(network, weights)
    return network.eval()


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Reads a state dict into a network; nothing that the file may hold besides tensors is executed.

    Args:
        network: Takes the weights.
        path: A file of `torch.save`: a state dict, or a mapping that holds one as ``state_dict``, ``model`` or
            ``network``, as checkpoints do. A ``module.`` in front of all names, of DataParallel, is dropped.

    Raises:
        QuantenvError: If the file cannot be read, or is no state dict of this network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise QuantenvError(
            f"Cannot read the weights {path}: {reason}. Expected a file of torch.save(network.state_dict())."
        ) from error
    for key in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise QuantenvError(f"The weights {path} hold no state dict: expected tensors by name.")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    expected = network.state_dict()
    for kind, names in (("lack", expected.keys() - state.keys()), ("hold the unknown", state.keys() - expected.keys())):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise QuantenvError(
                f"The weights {path} do not fit {type(network).__name__}: they {kind} {first!r}{more}. "
                "Check the model's name and its number of classes."
            )
    for name, value in expected.items():
        if value.shape != state[name].shape:
            raise QuantenvError(
                f"The weights {path} do not fit {type(network).__name__}: {name!r} is {tuple(state[name].shape)}, "
                f"expected {tuple(value.shape)}. Check the model's name and its number of classes."
            )
    network.load_state_dict(state)


def _torchvision(name: str, published: bool, arguments: dict[str, Any]) -> nn.Module:
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    if name in ("googlenet", "inception_v3") and not published:
        arguments.setdefault("init_weights", True)  # what they do anyhow, with a warning if it was not said
    try:
        network: nn.Module = models.get_model(name, weights=DEFAULT if published else None, **arguments)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        if not published:
            raise QuantenvError(f"Cannot make torchvision:{name} of the arguments {arguments}: {error}") from error
        raise QuantenvError(
            f"Cannot download the weights of torchvision:{name}: {error}. Download them where there is a network and "
            "give the file."
        ) from error
    return network


def _own(model: str, module: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise QuantenvError(f"Cannot import model {model!r}: {error}. Is it installed, or on PYTHONPATH?") from error
    network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise QuantenvError(f"Model {model!r} returned a {type(network).__name__}; expected a torch.nn.Module.")
    return network
