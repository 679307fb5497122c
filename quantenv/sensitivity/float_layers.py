"""The float network with a handle on what quantization perturbs: each layer's weights and its input activations."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.quantization.calibration import Calibration


class FloatLayers:
    """The folded float network, differentiable in any layer's weights and in a shift of any layer's input.

    Args:
        calibration: The calibrated network; it is copied.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._module = copy.deepcopy(calibration.graph)
        self._module.requires_grad_(False)
        modules = [self._module.get_submodule(layer.name) for layer in calibration.modules]
        self.weights: list[torch.Tensor] = [_weight(module) for module in modules]
        """Weights of each whole layer, in the network's order; batch norms are folded in."""
        self._inputs: list[torch.Tensor] = [torch.empty(0)] * len(modules)
        self._shifted: set[int] = set()
        for index, module in enumerate(modules):
            module.register_forward_pre_hook(self._hook(index))

    def inputs(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Returns what every layer reads, each (B, ...), for a batch (B, ...)."""
        with torch.no_grad():
            self._module(batch)
        return self._inputs

    def loss(
        self, batch: torch.Tensor, labels: torch.Tensor, weights: tuple[int, ...], activations: tuple[int, ...]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Computes the summed cross-entropy as a function of some layers' weights and inputs.

        Args:
            batch: Shape (B, ...).
            labels: Shape (B,).
            weights: Layers whose weights it shall be differentiated in.
            activations: Layers whose inputs it shall be differentiated in.

        Returns:
            The loss, and what it can be differentiated in: the weights, then shifts of the inputs, which are zero,
            each (B, ...). A shift moves only what this one layer reads, as its own activation bits do.
        """
        for index, weight in enumerate(self.weights):
            weight.requires_grad_(index in weights)
        self._shifted = set(activations)
        loss = F.cross_entropy(self._module(batch), labels, reduction="sum")
        self._shifted = set()
        return loss, [self.weights[index] for index in weights] + [self._inputs[index] for index in activations]

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            (value,) = arguments
            if index not in self._shifted:
                self._inputs[index] = value.detach().clone()  # operations in place may change it later
                return arguments
            self._inputs[index] = torch.zeros_like(value, requires_grad=True)
            return (value + self._inputs[index],)

        return hook


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
