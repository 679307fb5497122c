"""Ranges by minimum mean squared error, for every bit-width at once.

Max-abs ranges have 3-5 times the squared error of these at 2-4 bits. The candidates of b bits include a grid that
contains the best grid of b - 1 bits, so more bits never have a larger error on the calibration data.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from quantenv.quantization.formats import Grid, activation_bounds, power_of_two, quantize, weight_bounds

BITS = range(1, 9)
#: Clipping ratios tried for activations, as fractions of the extremes.
RATIOS = torch.linspace(0.1, 1.0, 91)
QUARTERS = (0.25, 0.5, 0.75, 1.0)
#: The same grid of ratios for weights, of which there are more: first coarsely, then about the best.
COARSE_RATIOS = torch.linspace(0.1, 1.0, 19)
REFINEMENTS = torch.tensor([-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04])
#: Clipping ratios of the two ends of activations of both signs: the same, and each end alone by a few.
END_RATIOS = torch.cat(
    (
        RATIOS[:, None].expand(-1, 2),
        torch.tensor([(low, high) for low in QUARTERS for high in QUARTERS if low != high]),
    )
)
#: Values that are rounded together in a search for ranges.
SEARCHED_AT_ONCE = 1 << 17
#: Samples of an activation that take part in the search for its range.
MAX_SAMPLES = 1 << 15
#: Steps of the additive recurrence R2: 1 / g and 1 / g**2, where g is the plastic number, g**3 = g + 1.
R2 = (1 / 1.324717957244746, 1 / 1.324717957244746**2)


def weight_grids(weight: torch.Tensor) -> dict[int, Grid]:
    """Finds symmetric per-output-channel grids.

    Args:
        weight: Shape (O, ...).

    Returns:
        For each bit-width 1-8 the grid of least squared error per channel, scale of shape (O, 1, ...).
        One bit has the closed form scale = mean |w| (XNOR-Net, eq. 6). A channel of zeros gets scale 1
        (0 at one bit), so that it stays exactly zero.
    """
    shape = (-1,) + (1,) * (weight.dim() - 1)
    flat = weight.detach().flatten(1)
    unit = power_of_two(flat.abs().amax(1))
    flat = flat / unit[:, None]
    largest = flat.abs().amax(1)
    channels = max(1, SEARCHED_AT_ONCE // flat.shape[1])
    grids = {1: Grid(1, flat.abs().mean(1).view(shape), *weight_bounds(1))}
    for bits in BITS[1:]:
        # Channels are searched on their own: as many at once as the processor's caches hold.
        parts = zip(*(x.split(channels) for x in (flat, largest, grids[bits - 1].scale.view(-1))), strict=True)
        scale = torch.cat([_weight_scale(rows, bits, high, coarser) for rows, high, coarser in parts])
        grids[bits] = Grid(bits, scale.view(shape), *weight_bounds(bits))
    return {bits: _rescaled(grid, unit.view(shape)) for bits, grid in grids.items()}


def _weight_scale(flat: torch.Tensor, bits: int, largest: torch.Tensor, coarser: torch.Tensor) -> torch.Tensor:
    """Finds the scale (O,) of least error for weights (O, K): coarsely, about the best, and that of one bit less."""
    low, high = weight_bounds(bits)
    unit = largest / high

    def errors(scales: torch.Tensor) -> torch.Tensor:
        """Of scales (A, O)."""
        at_once = max(1, SEARCHED_AT_ONCE // flat.numel())
        grids = (Grid(bits, part[:, :, None], low, high) for part in scales.split(at_once))
        return torch.cat([quantize(flat, grid).sub_(flat).square_().mean(2) for grid in grids])

    coarse = _positive(unit * COARSE_RATIOS[:, None])
    coarse_errors = errors(coarse)
    centre = coarse.gather(0, coarse_errors.argmin(0, keepdim=True))
    more = torch.cat((_positive(centre + unit * REFINEMENTS[:, None]), _positive(coarser)[None]))
    scales, all_errors = torch.cat((coarse, more)), torch.cat((coarse_errors, errors(more)))
    return scales.gather(0, all_errors.argmin(0, keepdim=True))[0]


def activation_grids(samples: torch.Tensor, extremes: torch.Tensor | None = None) -> dict[int, Grid]:
    """Finds affine per-tensor grids.

    Args:
        samples: Values the tensor took on calibration data, any shape. At most `MAX_SAMPLES`, see `spread`, are used.
        extremes: Values among which are the lowest and the highest that the tensor took, which bound the ranges that
            are tried; by default the samples.

    Returns:
        For each bit-width 1-8 the grid of least squared error: zero-point 0 if no value is negative, otherwise the
        best of all zero-points that the clipping ratios of the two ends give. Data that are all zero get
        scale 1.
    """
    flat = samples.detach().flatten().float()
    bounds = torch.stack((flat if extremes is None else extremes.detach().float()).aminmax())
    unit = power_of_two(bounds.abs().max())
    flat, (lowest, highest) = flat / unit, bounds / unit
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    flat = spread(flat, MAX_SAMPLES)
    signed = bool(lowest < 0)
    ordered, grids = _Ordered(flat), {}
    for bits in BITS:
        if bits == 1 and signed:
            grids[1] = Grid(1, flat.abs().mean(), *activation_bounds(1, 1))
            continue
        levels = 2**bits - 1
        if signed:
            ends = lowest * END_RATIOS[:, 0], highest * END_RATIOS[:, 1]
            scales = _positive((ends[1] - ends[0]) / levels)
            zero_points = (-ends[0] / scales).round().clamp(1, levels)
        else:
            scales = _positive(highest * RATIOS / levels)
            zero_points = torch.zeros_like(scales)
        if bits > 1:
            previous = grids[bits - 1]
            zero_point = 1 if previous.sign else -previous.low + (2 ** (bits - 2) if signed else 0)
            scales = torch.cat((scales, _positive(previous.scale)[None]))
            zero_points = torch.cat((zero_points, torch.tensor([float(zero_point)])))
        likely = ordered.candidates(levels, scales, zero_points)
        best = int(likely[_errors(flat, levels, scales[likely], zero_points[likely]).argmin()])
        grids[bits] = Grid(bits, scales[best].clone(), *activation_bounds(bits, int(zero_points[best])))
    return {bits: _rescaled(grid, unit) for bits, grid in grids.items()}


def spread(values: torch.Tensor, most: int, part: range | None = None, samples: int | None = None) -> torch.Tensor:
    """Returns values at places that are spread evenly over samples and, within them, over every period.

    A fixed stride would see few columns of an image whose sizes are powers of two, and multiples of the golden ratio
    over all values leave holes at some sizes. Sample and place within it are drawn together, by the additive recurrence
    R2: multiples of 1 / g and 1 / g**2 modulo 1 with g**3 = g + 1, the generalisation of the golden ratio to two
    dimensions (Roberts 2018, "The Unreasonable Effectiveness of Quasirandom Sequences"). Every image, channel, row,
    column and position then has its share, whatever the batches.

    Args:
        values: Of a batch of samples: any shape, as many values for each sample.
        most: How many values to return at most of all samples together.
        part: Which of all samples the batch is; by default all values are of one sample.
        samples: How many samples there are in all; by default as many as `part`.

    Returns:
        The batch's share of the values, (n,); all of them where all samples together have no more than `most`.
    """
    flat = values.flatten()
    part = part or range(1)
    samples = samples or len(part)
    if len(flat) * samples <= most * len(part):
        return flat
    count = torch.arange(1, most + 1, dtype=torch.float64)
    sample, place = (count * step % 1 for step in R2)
    places = (sample * samples).floor() - part.start + place
    inside = (places >= 0) & (places < len(part))
    return flat[(places[inside] * (len(flat) / len(part))).long().clamp(max=len(flat) - 1)]


class _Ordered:
    """Values in order, of which sums over intervals tell the error of a grid without a look at each."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._values = flat.double().sort().values
        self._sums = F.pad(self._values.cumsum(0), (1, 0))
        self._squares = self._values.square().sum()

    def candidates(self, levels: int, scales: torch.Tensor, zero_points: torch.Tensor) -> torch.Tensor:
        """Returns which grids, of scales and zero-points (A,), may have the least error by `_errors`, in order.

        Its additions in single precision are off by less than what is let through here.
        """
        # (A, levels + 1)
        points = (torch.arange(levels + 1) - zero_points[:, None].double()) * scales[:, None].double()
        inner = torch.searchsorted(self._values, (points[:, 1:] + points[:, :-1]) / 2)
        edges = F.pad(F.pad(inner, (1, 0)), (0, 1), value=len(self._values))
        counts, sums = edges.diff(), self._sums[edges].diff()
        errors = self._squares + (points.square() * counts - 2 * points * sums).sum(1)
        return (~(errors > 1.02 * errors.min() + 1e-9 * self._squares)).nonzero()[:, 0]


def _errors(flat: torch.Tensor, levels: int, scales: torch.Tensor, zero_points: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error (A,) of rounding values (N,) to grids of scales and zero-points (A,)."""
    at_once = max(1, SEARCHED_AT_ONCE // max(1, len(flat)))
    found = []
    for scale, zero_point in zip(scales[:, None].split(at_once), zero_points[:, None].split(at_once), strict=True):
        codes = flat.div(scale).round_().clamp_(-zero_point, levels - zero_point)
        found.append(codes.mul_(scale).sub_(flat).square_().mean(1))
    return torch.cat(found)


def _rescaled(grid: Grid, unit: torch.Tensor) -> Grid:
    """Returns the grid of values that were divided by a unit."""
    scale = grid.scale * unit
    return replace(grid, scale=scale if grid.sign else _positive(scale))


def _positive(scale: torch.Tensor) -> torch.Tensor:
    """Replaces steps too small to divide by (a tensor of zeros): with step 1, zeros stay exactly zero."""
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
