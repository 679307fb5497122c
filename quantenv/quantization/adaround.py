"""AdaRound: each weight up or down, so that the layer's outputs change least (Nagel et al. 2020, "Up or Down?").

A layer's outputs change by ``e x`` where its weights change by e, so that their mean squared error over inputs x is a
quadratic form ``e E[x x^T] e^T`` for each output channel (the paper's local loss, before the activation function). With
the second moments E[x x^T] measured once, a step costs one product with them, however many images there are. The choice
is relaxed as in the paper (rectified sigmoid and annealed regulariser, Adam), hardened, and then improved by single
weights and pairs until none lowers the error any more. The error is never above that of rounding to nearest.
"""

import math

import torch

from quantenv.quantization.formats import Grid

#: Stretch of the rectified sigmoid (Louizos et al. 2018): zeta - gamma and gamma of eq. 23.
STRETCH, OFFSET = 1.2, -0.1
#: Steps of Adam and their size; AIMET and the paper take 10,000 of 0.01, on few samples each. With exact moments, 1,000
#: of 0.02 lower the error of ResNet-20 at 3 bits by 2 per cent more than these, in three times the time.
STEPS, LEARNING_RATE = 300, 0.05
#: Adam's moments (Kingma & Ba 2015).
DECAYS = (0.9, 0.999)
#: Share of the steps without the regulariser, and its exponent beta (eq. 24) at their end and at the end of all.
WARM_UP, BETAS = 0.2, (20.0, 2.0)
#: Weight of the regulariser, averaged over a channel's weights, beside the error relative to nearest rounding's.
REGULARISER = 1.0
#: A weight moves at the end if that lowers its channel's error by more than this share of nearest rounding's.
LEAST_GAIN = 1e-6
#: Weights of which pairs are tried, and moves at most for each weight of a channel.
PARTNERS, MOST_MOVES = 8, 2
#: Where a weight starts at most between its two values, so that the sigmoid has a gradient.
EDGE = 0.01


def neighbours(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the whole numbers of a grid below and above each weight (O, ...); equal ones beyond the grid's ends.

    Of a sign grid they are -1 and 1 for all weights between them.
    """
    if grid.sign:
        size = grid.scale.expand_as(weight)
        return torch.where(weight > size, 1.0, -1.0), torch.where(weight < -size, -1.0, 1.0)
    below = (weight / grid.scale).floor()
    return below.clamp(grid.low, grid.high), (below + 1).clamp(grid.low, grid.high)


def nearest_codes(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the whole numbers that `quantize` rounds weights (O, ...) to."""
    if grid.sign:
        return torch.where(weight >= 0, 1.0, -1.0)
    return (weight / grid.scale).round().clamp(grid.low, grid.high)


def by_groups(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Returns what each weight (O, ...) has as (G, O / G, K), for the G groups of a grouped convolution."""
    return values.reshape(groups, values.shape[0] // groups, -1)


def errors(change: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Returns what a change of weights adds to each output in the mean square.

    Args:
        change: Shape (G, O / G, K).
        moments: Second moments of the inputs, (G, K, K).

    Returns:
        Shape (G, O / G).
    """
    return (torch.matmul(change, moments) * change).sum(-1)


def adaround(weight: torch.Tensor, grid: Grid, moments: torch.Tensor) -> torch.Tensor:
    """Rounds a layer's weights up or down so that its outputs change least.

    Args:
        weight: Float weights, (O, ...).
        grid: What to round to.
        moments: Second moments E[x x^T] of the values that an output channel multiplies, (G, K, K) with K = weights of
            an output channel and G = groups of the convolution (1 of a linear layer). Where the mean of outputs is put
            right otherwise, those about the mean.

    Returns:
        Whole numbers of the grid, the shape of `weight`. Each channel's error is at most that of rounding to nearest.
    """
    groups = len(moments)
    rows, low, high = (by_groups(each, groups) for each in (weight, *neighbours(weight, grid)))
    nearest, scale = by_groups(nearest_codes(weight, grid), groups), grid.scale.reshape(groups, -1, 1)
    moments = moments.float()
    before = errors(nearest * scale - rows, moments)
    unit = torch.where(before > 0, before, 1.0)[..., None]
    start = ((rows / scale.where(scale > 0, 1.0) - low) / (high - low).where(high > low, 1.0)).clamp(EDGE, 1 - EDGE)
    span = (high - low) * scale
    up = _relaxed(low * scale - rows, span, moments, unit, start) >= 0.5
    change = _descended(torch.where(up, high, low) * scale - rows, low * scale - rows, span, moments, unit)
    codes = torch.where(change - (low * scale - rows) > span / 2, high, low)
    after, before = (errors((each * scale - rows).double(), moments.double()) for each in (codes, nearest))
    return torch.where((after < before)[..., None], codes, nearest).reshape(weight.shape)


def rectified_sigmoid(values: torch.Tensor) -> torch.Tensor:
    """Returns h(V) of eq. 23, in [0, 1]."""
    return (torch.sigmoid(values) * STRETCH + OFFSET).clamp(0, 1)


def inverse_rectified_sigmoid(shares: torch.Tensor) -> torch.Tensor:
    """Returns the V whose h(V) are shares strictly between 0 and 1."""
    return -torch.log(STRETCH / (shares - OFFSET) - 1)


def beta(share: float) -> float:
    """Returns the regulariser's exponent after a share of all steps: from BETAS[0] to BETAS[1], along a cosine."""
    first, last = BETAS
    return last + (first - last) * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


def _relaxed(
    lowest: torch.Tensor, span: torch.Tensor, moments: torch.Tensor, unit: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """Minimises eq. 21 and returns the shares of the way up, (G, O / G, K), nearly all of them 0 or 1.

    Args:
        lowest: Change of the weights where all are rounded down.
        span: What rounding up adds to it, >= 0.
        moments: Second moments of the inputs, (G, K, K).
        unit: What each channel's error is divided by, (G, O / G, 1).
        start: Shares to start from.
    """
    values, factor = inverse_rectified_sigmoid(start), 2 * span / unit
    mean, square = torch.zeros_like(values), torch.zeros_like(values)
    count = span.shape[-1]
    for step in range(1, STEPS + 1):
        sigmoid = torch.sigmoid(values)
        stretched = sigmoid * STRETCH + OFFSET
        shares = stretched.clamp(0, 1)
        gradient = torch.matmul(lowest + span * shares, moments).mul_(factor)
        if step > WARM_UP * STEPS:
            exponent = beta(step / STEPS)
            signed = 2 * shares - 1
            gradient -= signed.abs().pow_(exponent - 1).mul_(signed.sign()).mul_(2 * exponent * REGULARISER / count)
        gradient *= STRETCH * sigmoid * (1 - sigmoid) * (stretched == shares)
        mean.lerp_(gradient, 1 - DECAYS[0])
        square.lerp_(gradient.square(), 1 - DECAYS[1])
        size = LEARNING_RATE / (1 - DECAYS[0] ** step)
        values -= size * mean / ((square / (1 - DECAYS[1] ** step)).sqrt_() + 1e-12)
    return rectified_sigmoid(values)


def _descended(
    change: torch.Tensor, lowest: torch.Tensor, span: torch.Tensor, moments: torch.Tensor, unit: torch.Tensor
) -> torch.Tensor:
    """Moves in each channel the one or two weights that lower the error most, until none do.

    Of pairs, those are tried of which one weight is among the `PARTNERS` that harm least alone.

    Args:
        change: Change of the weights to start from, (G, O / G, K): `lowest`, or that and `span`.
        lowest: Change of the weights where all are rounded down.
        span: What rounding up adds to it, >= 0.
        moments: Second moments of the inputs, (G, K, K).
        unit: What each channel's error is divided by, (G, O / G, 1).

    Returns:
        The change at the end.
    """
    change, diagonal = change.clone(), torch.diagonal(moments, dim1=1, dim2=2)[:, None]
    slope = 2 * torch.matmul(change, moments)
    move = torch.where(change - lowest > span / 2, -span, span)
    group = torch.arange(len(moments))[:, None]
    least = -LEAST_GAIN * unit[..., 0]

    def take(place: torch.Tensor, moves: torch.Tensor) -> None:
        """Moves the weight at a place, (G, O / G), of each channel that moves."""
        nonlocal slope
        taken = move.gather(-1, place[..., None]) * moves[..., None]
        change.scatter_add_(-1, place[..., None], taken)
        move.scatter_add_(-1, place[..., None], -2 * taken)
        slope += 2 * taken * moments[group, place]

    for _ in range(MOST_MOVES * change.shape[-1]):
        gains = move * (slope + move * diagonal)
        gain, place = gains.min(-1)
        moves = gain < least
        if moves.any():
            take(place, moves)
            continue
        alone, first = gains.topk(min(PARTNERS, gains.shape[-1]), largest=False)
        both = alone[..., None] + gains[..., None, :]
        both += 2 * move.gather(-1, first)[..., None] * move[..., None, :] * moments[group[..., None], first]
        both.scatter_(-1, first[..., None], torch.inf)  # a weight moves once
        gain, place = both.flatten(-2).min(-1)
        moves = gain < least
        if not moves.any():
            break
        take(first.gather(-1, place[..., None] // gains.shape[-1])[..., 0], moves)
        take(place % gains.shape[-1], moves)
    return change
