"""Weights that a network multiplies by outside of its layers, where no quantizer could reach them."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from quantenv.errors import UnsupportedLayerError

#: Functions that sum products over a dimension. F.linear and the convolutions come first: layers call them.
MULTIPLICATIONS: set[Callable[..., Any]] = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.bilinear,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.mm,
    torch.mv,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    torch.tensordot,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.Tensor.mm,
    torch.Tensor.bmm,
}


class Multiplications(TorchFunctionMode):
    """Raises when a parameter is multiplied by outside of the Conv2d or Linear layer that owns it.

    Args:
        network: The network that will run.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._owners = {
            _storage(parameter): (name, module)
            for name, module in network.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._running: list[nn.Module] = []
        self._thread = threading.get_ident()

    def hooks(self, layer: nn.Module) -> Iterator[Any]:
        """Tells of a layer that its own multiplication is seen; returns handles that take this back."""

        def before(module: nn.Module, _arguments: Any) -> None:
            if threading.get_ident() == self._thread:
                self._running.append(module)

        def after(module: nn.Module, _arguments: Any, _output: Any) -> None:
            if threading.get_ident() == self._thread:
                self._running.remove(module)

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at a call's tensors, then makes it."""
        kwargs = kwargs or {}
        if func in MULTIPLICATIONS:
            for value in [*args, *kwargs.values()]:
                owner = self._owners.get(_storage(value)) if isinstance(value, torch.Tensor) else None
                if owner is not None and not any(module is owner[1] for module in self._running):
                    name, module = owner
                    raise UnsupportedLayerError(
                        f"A weight of {name or 'the network itself'!r} ({type(module).__name__}) is multiplied by in "
                        f"{func.__name__}, outside of a layer, where it cannot be quantized. "
                        "Make it the weight of an nn.Linear or nn.Conv2d and call that."
                    )
        return func(*args, **kwargs)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
