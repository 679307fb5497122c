"""How a quantized network holds the whole numbers of a stored tensor: as float32, or as codes of one byte.

Both hold the same whole numbers. Float kernels read them as they are; int8 kernels read codes.
"""

from typing import Protocol

import torch

from quantenv.quantization.formats import Grid

_HALF = 128


class Storage(Protocol):
    """A way to hold whole numbers."""

    value_bytes: int
    """Bytes of each."""
    moves: bool
    """Whether zero is held as zero and the order is kept, so that padding and max pools work on what is held."""

    def hold(self, numbers: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Takes whole numbers of a grid, float32, which may be overwritten."""

    def numbers(self, held: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Returns the whole numbers, float32; they may be what is held itself, and must not be changed."""


class FloatStorage:
    """Whole numbers in float32, as they are."""

    value_bytes = 4
    moves = True

    def hold(self, numbers: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Returns the same tensor."""
        return numbers

    def numbers(self, held: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Returns the same tensor."""
        return held


class CodeStorage:
    """Codes, uint8: the whole number minus the grid's lowest."""

    value_bytes = 1
    moves = False

    def hold(self, numbers: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Returns codes."""
        # To int8 and its top bit turned: torch converts to int8 seven times as fast as to uint8.
        return numbers.sub_(grid.low + _HALF).to(torch.int8).view(torch.uint8).bitwise_xor_(_HALF)

    def numbers(self, held: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Returns whole numbers."""
        numbers = held.float()
        return numbers.add_(grid.low) if grid.low else numbers


def encode(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Rounds float values to a grid's whole numbers, float32."""
    if grid.sign:
        return (x >= 0).float().mul_(2).sub_(1)
    return x.div(grid.scale).round_().clamp_(grid.low, grid.high)


def decode(numbers: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the float32 values of a grid's whole numbers."""
    return numbers * grid.scale
