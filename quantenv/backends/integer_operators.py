"""The modules of the integer program besides layers: sums, averages, concatenations, and the borders to float.

All hold whole numbers of their grids, see `quantenv.quantization.storage`. Each multiplies whole numbers by a constant
of single precision and rounds once; products and sums in front of that are exact, so that no order changes a bit.
"""

from collections.abc import Callable, Sequence

import torch

from quantenv.quantization.formats import Grid
from quantenv.quantization.requantization import dyadic, largest_number, ratio, requantize
from quantenv.quantization.storage import Storage, decode, encode
from quantenv.quantization.switched import Bits, Setting, Switched, SwitchedSite

#: Values of a sum that each thread computes at a time: 512 KiB of floats. Those of a batch of 64 images of ResNet-20's
#: first stage, all at once, took twice as long on one core and slowed the other one down.
BLOCK = 1 << 17


class Target:
    """A stored tensor that a module puts out, and what a ReLU or ReLU6 in front of it leaves of its grid."""

    def __init__(self, site: SwitchedSite, storage: Storage, positive: bool = False, most: float | None = None) -> None:
        """Makes the target.

        Args:
            site: The stored tensor.
            storage: How it is held.
            positive: Whether a ReLU is in front.
            most: The largest value that is left, of a ReLU6.
        """
        self.site, self._storage, self._positive, self._most = site, storage, positive, most

    def select(self, bits: int) -> None:
        """Chooses the grid."""
        grid = self.site.grids[bits]
        self.grid = grid
        self.low = max(grid.low, 0) if self._positive and not grid.sign else grid.low
        # Rounding is monotone: to clamp before it or after it is the same.
        cap = grid.high if self._most is None else int(torch.round(self._most / grid.scale))
        self.high = min(grid.high, cap)

    def store(self, values: torch.Tensor) -> torch.Tensor:
        """Rounds values in units of the grid, float32, in place; returns what is held."""
        return self._storage.hold(requantize(values, self.grid, self.low, self.high), self.grid)


class _Operator(Switched):
    """An operator on stored tensors with a stored tensor behind it."""

    def __init__(self, terms: Sequence[SwitchedSite], target: Target, storage: Storage) -> None:
        """Makes the operator.

        Args:
            terms: Whose whole numbers it reads.
            target: What it puts out.
            storage: How whole numbers are held.
        """
        super().__init__()
        self._terms, self._target, self._storage = tuple(terms), target, storage  # in tuples: no submodules

    def setting(self, bits: Bits) -> Setting:
        """Returns the stored bits of the terms and of the target."""
        return tuple(value for site in [*self._terms, self._target.site] for value in site.setting(bits))

    def select(self, setting: Setting) -> None:
        """Chooses the grids and what follows from them."""
        *stored, output = setting
        self._target.select(output)
        self._grids = [site.grids[bits] for site, bits in zip(self._terms, stored, strict=True)]
        self._factors = self._multipliers(self._grids, self._target.grid)

    def _multipliers(self, grids: Sequence[Grid], output: Grid) -> list[float]:
        return [ratio(grid.scale, output.scale) for grid in grids]


class IntegerSum(_Operator):
    """A sum of two tensors: one multiplier b / 2**c for each, sums below 2**24, one rounding (HAWQ-V3, section 3.2)."""

    def _multipliers(self, grids: Sequence[Grid], output: Grid) -> list[float]:
        return dyadic([float(grid.scale) for grid in grids], float(output.scale), list(map(largest_number, grids)))

    def forward(self, *terms: torch.Tensor) -> torch.Tensor:
        """Adds whole numbers (B, ...), in blocks that stay in the CPU's cache."""
        terms = torch.broadcast_tensors(*terms)
        rows = max(1, torch.get_num_threads() * BLOCK * len(terms[0]) // max(1, terms[0].numel()))
        (first, second), (one, other) = self._grids, self._factors
        whole = self._storage.numbers
        blocks = [
            # Products are exact, so it does not matter whether a CPU fuses the second one with the addition.
            self._target.store((whole(a, first) * one).add_(whole(b, second), alpha=other))
            for a, b in zip(*(term.split(rows) for term in terms), strict=True)
        ]
        if len(blocks) == 1:
            return blocks[0]
        # Not torch.cat, which may choose another memory format.
        held = torch.empty_like(terms[0], dtype=blocks[0].dtype)
        for part, block in zip(held.split(rows), blocks, strict=True):
            part.copy_(block)
        return held


class IntegerAverage(_Operator):
    """An average over windows of equal size: an exact sum and one multiplier."""

    def __init__(
        self,
        sums: Callable[[torch.Tensor], torch.Tensor],
        count: int,
        term: SwitchedSite,
        target: Target,
        storage: Storage,
    ) -> None:
        """Makes the average.

        Args:
            sums: Sums over windows.
            count: Values of each window.
            term: Whose whole numbers it reads.
            target: What it puts out.
            storage: How whole numbers are held.
        """
        super().__init__([term], target, storage)
        self._sums, self._count = sums, count

    def _multipliers(self, grids: Sequence[Grid], output: Grid) -> list[float]:
        return [ratio(grids[0].scale, output.scale, self._count)]

    def forward(self, held: torch.Tensor) -> torch.Tensor:
        """Averages whole numbers."""
        return self._target.store(self._sums(self._storage.numbers(held, self._grids[0])) * self._factors[0])


class IntegerConcatenation(_Operator):
    """Tensors beside each other, each brought to the grid of the result."""

    def __init__(self, dimension: int, terms: Sequence[SwitchedSite], target: Target, storage: Storage) -> None:
        super().__init__(terms, target, storage)
        self._dimension = dimension

    def forward(self, *terms: torch.Tensor) -> torch.Tensor:
        """Concatenates whole numbers."""
        numbers = [
            self._storage.numbers(term, grid) * factor
            for term, grid, factor in zip(terms, self._grids, self._factors, strict=True)
        ]
        return self._target.store(torch.cat(numbers, self._dimension))


class Encode(Switched):
    """Float values to the whole numbers of a site."""

    def __init__(self, site: SwitchedSite, storage: Storage) -> None:
        super().__init__()
        self._site, self._storage = (site,), storage  # in a tuple, so that it does not become a submodule

    def setting(self, bits: Bits) -> Setting:
        """Returns the site's setting."""
        return self._site[0].setting(bits)

    def select(self, setting: Setting) -> None:
        """Chooses the site's grid."""
        self._grid = self._site[0].grids[setting[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes."""
        return self._storage.hold(encode(x, self._grid), self._grid)


class Decode(Encode):
    """Whole numbers of a site to float values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decodes."""
        return decode(self._storage.numbers(x, self._grid), self._grid)


class OutputAverage(Encode):
    """An average that is the network's output: an exact sum, times what 1 of it stands for, in float64."""

    def __init__(
        self, sums: Callable[[torch.Tensor], torch.Tensor], count: int, site: SwitchedSite, storage: Storage
    ) -> None:
        super().__init__(site, storage)
        self._sums, self._count = sums, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Averages whole numbers."""
        sums = self._sums(self._storage.numbers(x, self._grid))
        return sums.double().mul_(float(self._grid.scale) / self._count)


class Moved(Encode):
    """What moves whole numbers where what holds them does not allow it, such as padding of codes."""

    def __init__(self, move: Callable[[torch.Tensor], torch.Tensor], site: SwitchedSite, storage: Storage) -> None:
        super().__init__(site, storage)
        self._move = move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Moves values; they may be what is held itself, so a copy is stored."""
        return self._storage.hold(self._move(self._storage.numbers(x, self._grid)).clone(), self._grid)
