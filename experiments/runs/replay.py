"""Answers evaluations from a run's record instead of computing them: resuming replays the run from its beginning."""

from collections.abc import Sequence

from experiments.runs.episodes import Episode
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.base import Evaluation, Evaluator, known_activations

SEARCH = "search"


class RecordedEvaluator:
    """An evaluator that looks recorded allocations up and asks another evaluator for the rest."""

    def __init__(self, evaluator: Evaluator, recorded: Sequence[Episode]) -> None:
        """Wraps an evaluator.

        Args:
            evaluator: Computes what is not recorded.
            recorded: Episodes of the run, evaluated on the search split.

        Raises:
            QuantenvError: If an episode holds another number of layers or samples than the evaluator.
        """
        self.layers = evaluator.layers
        self.reference = evaluator.reference
        self.identity = evaluator.identity
        self.activations = known_activations(evaluator)
        self.evaluator = evaluator
        self._recorded: dict[tuple[tuple[int, int], ...], Evaluation] = {}
        for episode in recorded:
            if len(episode.bits) != len(self.layers) or episode.samples != self.reference.samples:
                raise QuantenvError(
                    f"Recorded evaluation {episode.evaluation} is of {len(episode.bits)} layers on "
                    f"{episode.samples} samples, but the task has {len(self.layers)} layers and "
                    f"{self.reference.samples} samples: episodes.jsonl belongs to another run."
                )
            self._recorded[episode.bits] = Evaluation(episode.correct, episode.samples, episode.loss)

    def evaluate(self, allocations: Sequence[Allocation], split: str = SEARCH) -> list[Evaluation]:
        """Evaluates allocations on a split, one evaluation for each, in order."""
        known = self._recorded if split == SEARCH else {}
        missing = [allocation for allocation in allocations if allocation.bits not in known]
        computed = iter(self.evaluator.evaluate(missing, split) if missing else [])
        return [known.get(allocation.bits) or next(computed) for allocation in allocations]
