"""The best allocations of a run: by search accuracy, then loss, then lower cost."""

import bisect
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from experiments.runs.episodes import Count, Episode, NonNegative, Positive
from quantenv.core.layers import LayerSpec
from quantenv.core.reading import Schema
from quantenv.hardware import Budget

FORMAT = "quantenv-top-k-1"


class Entry(Schema, frozen=True):
    """An allocation of `top_k.json` and its search results."""

    rank: Positive
    evaluation: Positive
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)]
    correct: Count
    samples: Positive
    loss: NonNegative | None
    costs: dict[str, NonNegative]
    allocation: dict[str, Any]
    """Content of an allocation file."""


class TopKFile(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """What `top_k.json` holds besides its checksum."""

    entries: tuple[Entry, ...]


class TopK:
    """Keeps the best K distinct feasible allocations of the episodes it is shown."""

    def __init__(self, k: int, budgets: Sequence[Budget]) -> None:
        """Starts empty.

        Args:
            k: How many to keep.
            budgets: Costs are compared by their largest share of a budget.
        """
        self._k, self._budgets = k, budgets
        self.episodes: list[Episode] = []

    def __call__(self, episode: Episode) -> None:
        """Takes an episode into account; of equals the first stays ahead."""
        if not episode.feasible or any(episode.bits == kept.bits for kept in self.episodes):
            return
        bisect.insort_right(self.episodes, episode, key=self._rank)
        del self.episodes[self._k :]

    @property
    def best(self) -> Episode | None:
        """The best feasible episode, or None if none was feasible yet."""
        return self.episodes[0] if self.episodes else None

    def to_dict(self, layers: Sequence[LayerSpec], task: str, scheme: str) -> dict[str, Any]:
        """Returns the content of `top_k.json`, without checksum: the allocations, best first, and their results."""
        entries = [
            {
                "rank": rank,
                "evaluation": episode.evaluation,
                "accuracy": episode.accuracy,
                "correct": episode.correct,
                "samples": episode.samples,
                "loss": episode.to_dict()["loss"],
                "costs": episode.costs,
                "allocation": episode.allocation(layers, task, scheme).to_dict(),
            }
            for rank, episode in enumerate(self.episodes, start=1)
        ]
        return {"format": FORMAT, "entries": entries}

    def _rank(self, episode: Episode) -> tuple[float, float, float]:
        share = max(episode.costs[budget.metric] / budget.limit for budget in self._budgets)
        return (-episode.accuracy, episode.loss, share)
