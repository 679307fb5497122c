"""Weights that a network multiplies by outside of its layers, where no quantizer could reach them."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.ops import OPS

#: Functions that sum products over a dimension. Layers call the first ones.
MULTIPLICATIONS: set[Callable[..., Any]] = {
    *(op.function for op in OPS.values()),
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
    """Raises when a parameter, or what is made of parameters alone, is multiplied by outside of a layer.

    Args:
        network: The network that will run.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._weights = WeakIdKeyDictionary()  # tensors made of parameters, and of which module's
        for name, module in network.named_modules():
            for parameter in module.parameters(recurse=False):
                self._weights[parameter] = name, type(module).__name__
        self._running, self._thread = 0, threading.get_ident()

    def hooks(self, layer: nn.Module) -> Iterator[Any]:
        """Tells of a layer that its own multiplication is seen; returns handles that take this back.

        Another thread may run the layer meanwhile, and be within it when this begins: only this thread's calls count.
        """

        def count(calls: int) -> None:
            if threading.get_ident() == self._thread:
                self._running += calls

        def before(_module: nn.Module, _arguments: Any) -> None:
            count(1)

        def after(_module: nn.Module, _arguments: Any, _output: Any) -> None:
            count(-1)

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at a call's tensors, then makes it."""
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        owners = [self._weights.get(value) for value in tensors]
        if func in MULTIPLICATIONS and not self._running:
            for owner in _factors(func.__name__, owners):
                if owner is not None:
                    name, kind = owner
                    raise UnsupportedLayerError(
                        f"A weight of {name or 'the network itself'!r} ({kind}) is multiplied by in "
                        f"{func.__name__}, outside of a layer, where it cannot be quantized. "
                        "Make it the weight of an nn.Linear or nn.Conv2d and call that."
                    )
        result = func(*args, **kwargs)
        if not self._running and owners and all(owner is not None for owner in owners):
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self._weights[value] = owners[0]
        return result


def _factors(function: str, tensors: list[Any]) -> list[Any]:
    """Returns those of a function's tensors that it multiplies: no biases."""
    if function == "linear" or function.startswith("conv"):
        return tensors[:2]
    return tensors[1:] if function in ("addmm", "baddbmm") else tensors
