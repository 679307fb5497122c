"""Trained quantizers of channel groups: each group has a quantizer of its own, of whatever kind."""

import torch
from torch import nn

from quantenv.quantization.formats import GroupedGrid
from quantenv.training.qat.base import Quantizer


class GroupedQuantizer(Quantizer):
    """Rounds each group of a tensor's output channels by a quantizer of its own.

    It is, channel by channel, the ungrouped quantizer of the channel's bits. What is learned belongs to the groups'
    quantizers, which are modules in it.
    """

    def __init__(self, grid: GroupedGrid, elements: int, kind: type[Quantizer]) -> None:
        """Makes the quantizers.

        Args:
            grid: Grids of the groups.
            elements: Weights that share one step: those of a channel.
            kind: What rounds each group.
        """
        super().__init__(max(grid.grids, key=lambda part: part.bits), elements)
        self.parts = nn.ModuleList(kind(part, elements) for part in grid.grids)
        self.sizes = [len(channels) for channels in grid.channels]
        order = torch.cat(grid.channels)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)

    order: torch.Tensor
    place: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds weights (O, ...), differentiably."""
        rows = x.index_select(0, self.order).split(self.sizes)
        rounded = [quantizer(part) for quantizer, part in zip(self.parts, rows, strict=True)]
        return torch.cat(rounded).index_select(0, self.place)

    def adopt(self, weight: torch.Tensor) -> torch.Tensor:
        """Takes over a pretrained weight, group by group; returns what to train in its place."""
        rows = weight.detach().index_select(0, self.order).split(self.sizes)
        adopted = [quantizer.adopt(part) for quantizer, part in zip(self.quantizers, rows, strict=True)]
        return torch.cat(adopted).index_select(0, self.place)

    def levels(self) -> torch.Tensor:
        """Returns the values of every channel, (O, n); a channel that has fewer repeats its highest one."""
        parts = [quantizer.levels() for quantizer in self.quantizers]
        most = max(part.shape[1] for part in parts)
        filled = [torch.cat([part, part[:, -1:].expand(-1, most - part.shape[1])], dim=1) for part in parts]
        return torch.cat(filled).index_select(0, self.place)

    def unit(self) -> torch.Tensor | None:
        """Returns that of every channel's quantizer, (O, 1, ...); None if one has none."""
        units = [unit for quantizer in self.quantizers if (unit := quantizer.unit()) is not None]
        return torch.cat(units).index_select(0, self.place) if len(units) == len(self.parts) else None

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizer of each group."""
        return [part for part in self.parts if isinstance(part, Quantizer)]

    def extra_repr(self) -> str:
        """Shows how many channels each group has."""
        return f"channels={self.sizes}"


def parts_of(quantizer: Quantizer) -> list[tuple[Quantizer, torch.Tensor | slice]]:
    """Returns the quantizers of single grids that one consists of, with the output channels of each."""
    if isinstance(quantizer, GroupedQuantizer):
        return list(zip(quantizer.quantizers, quantizer.order.split(quantizer.sizes), strict=True))
    return [(quantizer, slice(None))]
