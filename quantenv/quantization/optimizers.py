"""torch's optimizers without its compiler, which they import at their first step: seconds, though nothing is compiled.

They compute the same, by the same functions. Only what surrounds these, to tell the compiler where to stop, is left out
while the compiler has not been imported: nothing can be compiled then.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

COMPILER = "torch._dynamo"


class _WithoutCompiler(torch.optim.Optimizer):
    """Calls torch's own methods, as they are without what surrounds them."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step."""
        if COMPILER in sys.modules:
            return super().step(closure)
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return inspect.unwrap(super().step.__func__)(self, closure)  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        _bare(super().zero_grad)(self, set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes further parameters."""
        _bare(super().add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""
        return _bare(super().state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state."""
        _bare(super().load_state_dict)(self, state_dict)


def _bare(method: Any) -> Callable[..., Any]:
    """Returns the function of a bound method; without what surrounds it where the compiler has not been imported."""
    return method.__func__ if COMPILER in sys.modules else inspect.unwrap(method.__func__)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """As `torch.optim.Adam`."""


class AdamW(_WithoutCompiler, torch.optim.AdamW):
    """As `torch.optim.AdamW`."""


class SGD(_WithoutCompiler, torch.optim.SGD):
    """As `torch.optim.SGD`."""
