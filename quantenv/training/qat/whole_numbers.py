"""What integer hardware computes a trained layer with: exact sums of whole numbers, and a bias on their grid.

Sums of float products depend in their last digits on who sums them: another batch, number of threads, layout or
processor may mean another kernel (of a batch of one image it does everywhere). Sums of whole numbers do not, as long as
the format holds them. So what a trained layer puts out when it is evaluated is computed from these.
"""

import torch

from quantenv.graph.ops import Geometry
from quantenv.quantization.requantization import EXACT, LARGEST_BIAS


def numbers_of(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Returns the whole numbers that values are multiples of a unit by; zeros where the unit is 0."""
    return (values / torch.where(unit > 0, unit, 1.0)).round_()


def exact_sums(numbers: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Sums a layer's products of whole numbers: in single precision where it holds every sum, else in double.

    Args:
        numbers: The input's, (B, C, ...) or (B, ..., F).
        weight: The weights', (O, ...).
        geometry: How it multiplies.

    Returns:
        The sums, float32; those beyond 2**24 are rounded, once.
    """
    largest = weight.abs().flatten(1).sum(1).amax() * numbers.abs().amax()
    precision = torch.float32 if float(largest) < EXACT else torch.float64
    return geometry.run(numbers.to(precision), weight.to(precision)).float()


def on_grid(bias: torch.Tensor, unit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rounds a bias to a whole multiple, an int32, of what a sum of 1 stands for: ``round(bias / unit) * unit``.

    Its gradient is straight-through in the bias. None goes to the unit, and so to the steps that it is a product of:
    that of rounding, ``round(v) - v`` for each output, is at most one half and of either sign, noise beside what they
    get from all weights and inputs.

    Args:
        bias: The bias, (O,).
        unit: The unit by channel, (O,).
        weight: The rounded weights, (O, ...). A channel of zeros keeps its bias: nothing is summed there, and any unit
            that holds the bias will do.

    Returns:
        The bias that runs, (O,).
    """
    with torch.no_grad():
        wide, silent = unit.double(), ~weight.detach().flatten(1).any(1)
        number = (bias.double() / torch.where(silent, 1.0, wide)).round().clamp(-LARGEST_BIAS, LARGEST_BIAS)
        rounded = torch.where(silent, bias.double(), number * wide).to(bias.dtype)
    return rounded + (bias - bias.detach())
