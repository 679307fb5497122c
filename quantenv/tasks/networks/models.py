"""Networks by name: ``torchvision:resnet18``, or ``your_package.your_module:make_network``."""

import urllib.error
from collections.abc import Mapping
from typing import Any

from torch import nn

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.own_code import own_function, reason_of
from quantenv.tasks.networks.state_dicts import load_weights
from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.source import DEFAULT

TORCHVISION = "torchvision"


def make_network(
    model: str, weights: str | None = None, classes: int | None = None, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Makes a network by name.

    Args:
        model: ``torchvision:NAME``, a classification network of torchvision; or ``module:function``, a function of
            yours that returns the network.
        weights: Path of a state dict, see `quantenv.tasks.networks.state_dicts.load_weights`; ``DEFAULT`` for those
            that torchvision publishes; None for random ones, drawn with torch's own generator.
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
        network = _torchvision(name, published, given) if module == TORCHVISION else _own(model, given)
    except (TypeError, ValueError) as error:
        if isinstance(error, QuantenvError):
            raise
        raise QuantenvError(f"Cannot make {model} of the arguments {given}: {error}") from error
    if weights is not None and not published:
        load_weights(network, weights)
    return network.eval()


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


def _own(model: str, arguments: dict[str, Any]) -> nn.Module:
    function = own_function(model, "model")
    try:
        network = function(**arguments)
    except QuantenvError:
        raise
    except Exception as error:  # the function is the user's, which may fail in any way
        raise QuantenvError(f"Cannot make {model} of the arguments {arguments}: {reason_of(error)}.") from error
    if not isinstance(network, nn.Module):
        raise QuantenvError(f"Model {model!r} returned a {type(network).__name__}; expected a torch.nn.Module.")
    return network
