"""Copies of networks, also of those that hold tensors which torch's own copying refuses."""

import copy

import torch
from torch import nn

from quantenv.core.errors import UnsupportedLayerError


def copy_of(network: nn.Module) -> nn.Module:
    """Returns a deep copy; a tensor that was computed with gradients, such as a pruned weight, is copied by value.

    Raises:
        UnsupportedLayerError: If the network holds what cannot be copied.
    """
    memo: dict[int, torch.Tensor] = {}
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(network, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # what cannot be copied says so in one of these
        raise UnsupportedLayerError(
            f"{type(network).__name__} cannot be copied by copy.deepcopy ({(str(error).splitlines() or [''])[0]}): let "
            "it keep parameters, buffers and plain values only."
        ) from error
