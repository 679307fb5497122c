"""Quantizers that training can choose from, by name: PACT, DoReFa, LSQ+, mid-rise and k-means beside LSQ and linear.

All are `Quantizer`s: made from calibrated grids or codebooks, so that before training the network is the post-training
one (PACT and LSQ+ to the last rounding; mid-rise steps and DoReFa have one level more than a symmetric grid).
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.quantization.formats import Codebook, Grid, Rounding, power_of_two
from quantenv.training.qat.base import (
    GridQuantizer,
    LinearQuantizer,
    LSQQuantizer,
    Quantizer,
    scaled_gradient,
    straight_through,
)

TINY = torch.finfo(torch.float32).tiny


class PACTQuantizer(GridQuantizer):
    """Parameterized clipping activation (Choi et al. 2018, "PACT").

    Values are clipped to ``[0, alpha]`` (eq. 1) and rounded to even steps of it (eq. 2); the gradient of alpha is 1
    where a value is clipped and 0 elsewhere (eq. 3). Alpha is decayed, PACT's regulariser (section 3). PACT reads
    only what comes out of a ReLU; where a grid has negative values, too, its lower end moves in proportion.
    """

    decayed = True

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`. Alpha starts at the grid's upper end."""
        super().__init__(grid, elements)
        self.span = max(1, self.high, -self.low)
        self.alpha = nn.Parameter(grid.scale * self.span)

    @property
    def scale(self) -> torch.Tensor:  # type: ignore[override]
        """The step that alpha makes."""
        return self.alpha.abs() / self.span

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clips and rounds `x`, differentiably."""
        step = self.scale
        clipped = torch.maximum(torch.minimum(x, step * self.high), step * self.low)
        with torch.no_grad():
            if self.sign:
                rounded = torch.where(x >= 0, step, -step)
            else:
                rounded = (x / step).clamp(self.low, self.high).round() * step
        return (rounded - clipped).detach() + clipped


class LSQPlusQuantizer(Quantizer):
    """LSQ with a learned offset (Bhalgat et al. 2020, "LSQ+", section 3): ``scale * clamp(round((x - beta) / scale))``.

    Codes run from 0; beta starts at the grid's lowest value, so that zero is on the grid at first. The gradient of the
    step is LSQ's, that of beta 1 where a value is clipped and 0 elsewhere; both are scaled as LSQ's step is. Data
    without negative values pass a ReLU first, because the one that would have made them so is left to the quantizer.
    Zero padding stays an exact zero: on integer hardware a beta that is no multiple of the step needs a correction of
    the border, which is not simulated. For the same reason its levels have no `unit`, and the biases of layers that
    read it are not rounded: hardware adds ``beta`` times the sum of the weights to a bias, at the border of fewer
    weights, and each of these sums would be rounded for itself.
    """

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`.

        Raises:
            QuantenvError: If it is to start from a codebook.
        """
        super().__init__(grid, elements)
        if not isinstance(grid, Grid):
            raise QuantenvError("LSQPlusQuantizer starts from a grid, not from a codebook.")
        self.high = 2**grid.bits - 1
        self.positive = grid.low == 0
        self.scale = nn.Parameter(grid.scale * (2 if grid.sign else 1))
        self.offset = nn.Parameter(grid.scale * grid.low)
        self.gradient_scale = 1.0 / math.sqrt(elements * self.high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x`, differentiably."""
        if self.positive:
            x = x.relu()
        step = scaled_gradient(self.scale.abs(), self.gradient_scale)
        offset = scaled_gradient(self.offset, self.gradient_scale)
        return straight_through(((x - offset) / step).clamp(0, self.high)) * step + offset

    def levels(self) -> torch.Tensor:
        """Returns the grid's values, (C, n)."""
        codes = torch.arange(self.high + 1)
        return (self.scale.detach().abs() * codes + self.offset.detach()).reshape(1, -1)


class MidRiseQuantizer(GridQuantizer):
    """LSQ on levels between the whole numbers: ``scale * (clamp(round(x / scale - 1/2)) + 1/2)``, for weights.

    Symmetric grids for integer kernels leave one code out, which of 2 bits leaves three levels. These have all
    ``2**bits`` without it, evenly about zero and without zero itself: at 2 bits SAWB's +-1/3 and +-1 (Choi et al. 2019,
    "Accurate and Efficient 2-bit Quantized Neural Networks", section 3), with 0.62 of the squared error on normally
    distributed weights. Kernels store the odd numbers ``2 * code + 1`` with half the step. The gradient of the step is
    LSQ's (Esser et al. 2020, eq. 3). From 4 bits on hardly anything distinguishes it from LSQ.
    """

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`. The step is that of `adopt`, and the grid's before."""
        super().__init__(grid, elements)
        self.low, self.high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
        self.scale = nn.Parameter(grid.scale.clone())
        self.gradient_scale = 1.0 / math.sqrt(elements * max(1, self.high))

    @torch.no_grad()
    def adopt(self, weight: torch.Tensor) -> torch.Tensor:
        """Sets each channel's step to that of least squared error, of evenly spaced ones; returns the weight."""
        rows = weight.detach().flatten(1)
        unit = power_of_two(rows.abs().amax(1))
        rows = rows / unit[:, None]
        steps = rows.abs().amax(1) / (self.high + 0.5) * torch.linspace(0.02, 1, 99)[:, None].to(rows)  # (99, O)
        errors = torch.stack([(self._rounded(rows, step[:, None]) - rows).square().sum(1) for step in steps])
        self.scale.copy_((steps.gather(0, errors.argmin(0)[None]) * unit).view(self.scale.shape))
        return weight.detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` (O, ...), differentiably."""
        return self._rounded(x, scaled_gradient(self.scale.abs(), self.gradient_scale))

    def _rounded(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        places = (x / step.clamp(min=TINY) - 0.5).clamp(self.low, self.high)
        return (straight_through(places) + 0.5) * step

    def levels(self) -> torch.Tensor:
        """Returns the values of every channel, (O, 2**bits)."""
        return self.scale.detach().abs().reshape(-1, 1) * (torch.arange(self.low, self.high + 1) + 0.5)

    def unit(self) -> torch.Tensor | None:
        """Returns half the step, of which the levels are odd multiples."""
        return self.scale.detach().abs() / 2


class DoReFaQuantizer(Quantizer):
    """DoReFa-Net's weights (Zhou et al. 2016): ``2 * quantize_k(tanh(w) / (2 max |tanh(w)|) + 1/2) - 1`` (eq. 9).

    One bit is ``sign(w)`` times the mean of |w| (eq. 8). The gradient is straight-through to the tanh (eq. 6 and 10).
    DoReFa's weights fill [-1, 1] and leave their size to the batch norm behind; here batch norms are folded, so each
    channel has a constant scale, its largest weight, and the maximum is the channel's. What is trained is such that
    its tanh is the pretrained weight. The levels are even and without zero.
    """

    scale: torch.Tensor
    mean: torch.Tensor

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`. The scale is that of `adopt`, and the grid's end before."""
        super().__init__(grid, elements)
        end = grid.high if isinstance(grid, Grid) else float(grid.values.abs().max())
        self.register_buffer("scale", grid.scale * end)
        self.register_buffer("mean", torch.zeros_like(self.scale))

    def adopt(self, weight: torch.Tensor) -> torch.Tensor:
        """Sets the scale to each channel's largest weight; returns what has the weight as its scaled tanh."""
        self.scale.copy_(weight.detach().abs().flatten(1).amax(1).view(self.scale.shape))
        scale = self.scale.clamp(min=TINY)
        return torch.atanh(weight.detach() / scale * math.tanh(1.0)) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` (O, ...), differentiably in `x`."""
        squashed = torch.tanh(x / self.scale.clamp(min=TINY))
        dimensions = tuple(range(1, x.dim()))
        unit = squashed / squashed.detach().abs().amax(dimensions, keepdim=True).clamp(min=TINY)
        if self.bits == 1:
            size = unit.detach().abs().mean(dimensions, keepdim=True)
            self.mean.copy_(size.detach())
            return ((torch.where(x >= 0, size, -size) - unit).detach() + unit) * self.scale
        steps = 2**self.bits - 1
        return (2 * straight_through((unit / 2 + 0.5) * steps) / steps - 1) * self.scale

    def levels(self) -> torch.Tensor:
        """Returns the values of every channel, (C, n); those of one bit depend on what was rounded last."""
        if self.bits == 1:
            return (self.scale * self.mean).reshape(-1, 1) * torch.tensor([-1.0, 1.0])
        return self.scale.reshape(-1, 1) * torch.linspace(-1, 1, 2**self.bits)

    def unit(self) -> torch.Tensor | None:
        """Returns what the levels are odd multiples of; that of one bit depends on what was rounded last."""
        return self.scale * self.mean if self.bits == 1 else self.scale / (2**self.bits - 1)

    def steps(self) -> list[nn.Parameter]:
        """Returns nothing: the scale is constant."""
        return []


class KMeansQuantizer(Quantizer):
    """A codebook whose centroids are fine-tuned (Han et al. 2016, section 3.3; Wang et al. 2019, HAQ).

    A centroid's gradient is that of the weights nearest to it: their sum is eq. 3 of Deep Compression; their mean,
    which moves a centroid as far as a step moves its weights on average, is what HAQ's code does and what is done here.
    The weights learn straight-through, too, and may change their centroid; in both papers they keep it. Each channel's
    scale is learned at the rate of steps (in HAQ the batch norm behind does that). Centroids lie anywhere, so that sums
    of their products are on no grid, and neither are biases.
    """

    def __init__(self, grid: Rounding, elements: int) -> None:
        """Makes the quantizer; see `Quantizer`.

        Raises:
            QuantenvError: If it is to start from a grid.
        """
        super().__init__(grid, elements)
        if not isinstance(grid, Codebook):
            raise QuantenvError("KMeansQuantizer starts from a codebook, not from a grid.")
        self.values = nn.Parameter(grid.values.clone())
        self.scale = nn.Parameter(grid.scale.clone())
        self.gradient_scale = 1.0 / math.sqrt(elements)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds `x` to the nearest centroids, differentiably."""
        values = self.values.sort().values
        scale = scaled_gradient(self.scale, self.gradient_scale)
        indices = Codebook(self.bits, self.scale.detach(), values.detach()).indices(x)
        counts = torch.bincount(indices.flatten(), minlength=len(values)).clamp(min=1)
        chosen = _mean_gradient(values, counts)[indices]
        passed = x - x.detach()
        return chosen * scale + passed

    def levels(self) -> torch.Tensor:
        """Returns the centroids of every channel, (C, n)."""
        return self.scale.detach().reshape(-1, 1) * self.values.detach().sort().values

    def steps(self) -> list[nn.Parameter]:
        """Returns the channels' scales; centroids are weights."""
        return [self.scale]


def _mean_gradient(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns `values` with each one's gradient divided by its count."""
    share = 1.0 / counts
    return (values - values * share).detach() + values * share


#: Trained quantizers of weights by name. LSQ+ keeps LSQ's for weights.
WEIGHT_QUANTIZERS: Mapping[str, type[Quantizer]] = {
    "lsq": LSQQuantizer,
    "linear": LinearQuantizer,
    "mid-rise": MidRiseQuantizer,
    "dorefa": DoReFaQuantizer,
    "k-means": KMeansQuantizer,
}
#: Trained quantizers of activations by name. PACT takes its weights from DoReFa, DoReFa's activations are linear.
ACTIVATION_QUANTIZERS: Mapping[str, type[Quantizer]] = {
    "lsq": LSQQuantizer,
    "linear": LinearQuantizer,
    "dorefa": LinearQuantizer,
    "pact": PACTQuantizer,
    "lsq+": LSQPlusQuantizer,
}


def weight_quantizer(name: str) -> type[Quantizer]:
    """Looks up a quantizer of weights.

    Raises:
        QuantenvError: If there is none of this name.
    """
    if name not in WEIGHT_QUANTIZERS:
        raise unknown_name("quantizer of weights", name, WEIGHT_QUANTIZERS)
    return WEIGHT_QUANTIZERS[name]


def activation_quantizer(name: str) -> type[Quantizer]:
    """Looks up a quantizer of activations.

    Raises:
        QuantenvError: If there is none of this name.
    """
    if name not in ACTIVATION_QUANTIZERS:
        raise unknown_name("quantizer of activations", name, ACTIVATION_QUANTIZERS)
    return ACTIVATION_QUANTIZERS[name]
