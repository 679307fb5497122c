"""Codebooks by k-means: what HAQ's size mode stores (Wang et al. 2019, section 3; Han et al. 2016, Deep Compression).

A layer has one codebook of ``2**bits`` centroids for all its weights. Batch norms are folded here, which HAQ leaves
beside the weights in float; so each channel is first divided by its root mean square, a scale that is stored beside it
as those of grids are (without it, three bits leave the digits task 45% accuracy instead of 95%). Weights are numbers on
a line: sorted once, with running sums, an exact Lloyd iteration over all of them takes a look-up per centroid, whatever
their count.
"""

import torch

from quantenv.quantization.formats import Codebook, power_of_two

BITS = range(1, 9)
#: Lloyd iterations of one codebook at most; few bits converge in fewer.
ITERATIONS = 100
#: Centroids at most that are taken from where they are worth least to where they are worth most.
MOVES = 64


def codebooks(weight: torch.Tensor) -> dict[int, Codebook]:
    """Fits the codebooks of a layer.

    Args:
        weight: Shape (O, ...).

    Returns:
        For one bit the two centroids of least squared error of the scaled weights. For each further bit-width 2-8 the
        better of two fits: from evenly spaced centroids (Han et al. 2016, section 3.2, find those best) and from the
        codebook of one bit less, each centroid split in two; then single centroids are moved as long as that helps. So
        more bits never have a larger error. Nothing is random.
    """
    shape = (-1,) + (1,) * (weight.dim() - 1)
    flat = weight.detach().flatten(1)
    unit = power_of_two(flat.abs().amax(1, keepdim=True))
    scale = (flat / unit).square().mean(1, keepdim=True).sqrt() * unit
    line = _Line((flat / torch.where(scale > 0, scale, 1.0))[scale[:, 0] > 0].flatten())
    found: dict[int, Codebook] = {}
    for bits in BITS:
        if bits == 1:
            values = line.halves()
        else:
            starts = line.spread(2**bits), line.split(found[bits - 1].values.double())
            values = line.move(min((line.fit(start) for start in starts), key=line.error))
        found[bits] = Codebook(bits, scale.view(shape), values.to(weight.dtype))
    return found


class _Line:
    """Numbers in ascending order with running sums; those of an interval then have count, sum and mean at once."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.sorted = numbers.double().sort().values if len(numbers) else torch.zeros(1, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        self.sums = torch.cat([zero, self.sorted.cumsum(0)])
        self.squares = torch.cat([zero, self.sorted.square().cumsum(0)])

    def halves(self) -> torch.Tensor:
        """Returns the two centroids of least error, found by trying every cut."""
        if len(self.sorted) == 1:
            return self.sorted.expand(2)
        below = torch.arange(1, len(self.sorted))
        left, right = self.sums[below], self.sums[-1] - self.sums[below]
        counts = torch.stack([below, len(self.sorted) - below])
        means = torch.stack([left, right]) / counts
        return means[:, (counts * means.square()).sum(0).argmax()]

    def spread(self, count: int) -> torch.Tensor:
        """Returns the centres of `count` equal intervals between the extremes."""
        low, high = self.sorted[0], self.sorted[-1]
        return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count

    def split(self, centroids: torch.Tensor) -> torch.Tensor:
        """Returns twice as many centroids: each interval's means below and above its centroid."""
        edges = self._edges(centroids)
        middle = torch.searchsorted(self.sorted, centroids).clamp(edges[:-1], edges[1:])
        return self._means(torch.stack([edges[:-1], middle], 1).flatten(), edges[-1:], centroids.repeat_interleave(2))

    def fit(self, centroids: torch.Tensor) -> torch.Tensor:
        """Iterates Lloyd's algorithm until no number changes its centroid."""
        edges = self._edges(centroids)
        for _ in range(ITERATIONS):
            centroids = self._filled(self._means(edges[:-1], edges[-1:], centroids), edges)
            moved = self._edges(centroids)
            if torch.equal(moved, edges):
                break
            edges = moved
        return centroids

    def move(self, centroids: torch.Tensor) -> torch.Tensor:
        """Merges the two neighbours that cost least and splits the interval that gains most, while the error falls."""
        for _ in range(MOVES):
            edges, error = self._edges(centroids), self.error(centroids)
            errors, halves = self._errors(centroids, edges), self.split(centroids)
            gain = errors - self._errors(halves, self._edges(halves)).view(-1, 2).sum(1)
            worst = int(gain.argmax())
            pairs = edges[2:] - edges[:-2]
            means = (self.sums[edges[2:]] - self.sums[edges[:-2]]) / pairs.clamp(min=1)
            squares = self.squares[edges[2:]] - self.squares[edges[:-2]]
            loss = squares - pairs * means.square() - errors[1:] - errors[:-1]
            loss[max(0, worst - 1) : worst + 1] = torch.inf  # what is split is not merged
            cheapest = int(loss.argmin())
            if not gain[worst] > loss[cheapest]:
                break
            kept = torch.ones(len(centroids), dtype=torch.bool)
            kept[[cheapest, cheapest + 1, worst]] = False
            new = torch.cat([centroids[kept], means[cheapest : cheapest + 1], halves[2 * worst : 2 * worst + 2]])
            moved = self.fit(new.sort().values)
            if self.error(moved) >= error:
                break
            centroids = moved
        return centroids

    def error(self, centroids: torch.Tensor) -> float:
        """Returns the summed squared distance of all numbers from their nearest centroids."""
        edges = self._edges(centroids)
        return float(self._errors(centroids, edges).sum())

    def _errors(self, centroids: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        count, total, square = edges.diff(), self.sums[edges].diff(), self.squares[edges].diff()
        return (square - 2 * centroids * total + count * centroids.square()).clamp(min=0)

    def _edges(self, centroids: torch.Tensor) -> torch.Tensor:
        """Returns where each centroid's numbers begin, (n + 1,)."""
        inner = torch.searchsorted(self.sorted, (centroids[1:] + centroids[:-1]) / 2)
        return torch.cat([torch.tensor([0]), inner, torch.tensor([len(self.sorted)])])

    def _means(self, starts: torch.Tensor, end: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        edges = torch.cat([starts, end])
        count = edges.diff()
        return torch.where(count > 0, self.sums[edges].diff() / count.clamp(min=1), otherwise).sort().values

    def _filled(self, centroids: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Gives centroids that no number is nearest to a share of the intervals with the largest errors.

        As many numbers as there are empty clusters, the extremes of the worst intervals, become centroids; where all
        intervals are exact already, what is empty stays where it is.
        """
        empty = (edges.diff() == 0).nonzero().flatten()
        if not len(empty):
            return centroids
        errors = self._errors(centroids, edges)
        worst = errors.argsort(descending=True, stable=True)[: len(empty)]
        worst = worst[errors[worst] > 1e-12 * max(1e-300, float(self.squares[-1]))]
        centroids = centroids.clone()
        centroids[empty[: len(worst)]] = self.sorted[edges[worst + 1] - 1]
        return centroids.sort().values
