"""Copies of one environment that decide together, so that their allocations are evaluated in one batch."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from quantenv.envs.copies import Copies, Infos, Rows
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.vector import VectorTableEnv
from quantenv.evaluation.table.evaluator import TableEvaluator

#: What is known at every step, beside the budgets; the rest is known at the end.
ALWAYS = ("action_mask", "decision", "executed_action", "corrected", "evaluations", "measured_evaluations")


def vectorize(
    single: QuantizationEnv, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP
) -> Copies:
    """Makes copies of an environment that take every decision together.

    Args:
        single: The environment. Its evaluator, constraint and counts are shared; an episode running in it is not.
        num_envs: Copies, N, at least 1.
        autoreset_mode: When an episode that has ended gives way to the next: see `quantenv.envs.copies.Copies`.

    Returns:
        A `VectorTableEnv` where that gives the same answers without evaluating, else a `LockstepEnv`.

    Raises:
        QuantenvError: If there is less than one copy, or no such mode.
    """
    plain = type(single) is QuantizationEnv  # what other environments do in an episode is not in `VectorTableEnv`
    looked_up = plain and isinstance(single.evaluator, TableEvaluator) and single.constraint in ("mask", "reject")
    if looked_up and single.render_mode is None:
        return VectorTableEnv(num_envs, single=single, autoreset_mode=autoreset_mode)
    return LockstepEnv(single, num_envs, autoreset_mode)


class LockstepEnv(Copies):
    """N copies of a `QuantizationEnv`, of any kind, whose finished allocations are evaluated in one batch.

    A constraint that learns does so from one copy after the other, as if they had run one after the other.
    """

    def __init__(
        self,
        single: QuantizationEnv,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        """Copies an environment.

        Args:
            single: The environment; what it was built from is shared, not copied.
            num_envs: Copies, N, at least 1.
            autoreset_mode: When an episode that has ended gives way to the next: see `quantenv.envs.copies.Copies`.

        Raises:
            QuantenvError: If there is less than one copy, or no such mode.
        """
        super().__init__(single, num_envs, autoreset_mode)
        # Shallow: `reset` renews what an episode changes.
        self.copies = [copy.copy(single) for _ in range(self.num_envs)]
        """The copies."""
        for each in self.copies:
            each.evaluations = each._seeded_at = 0
        self._always = (*ALWAYS, *(f"budget_{budget.metric}" for budget in single.budgets))
        self._observations = np.zeros((self.num_envs, len(single.feature_names)), np.float32)

    @property
    def evaluations(self) -> int:
        """Evaluations charged, over all copies: episodes finished in this environment's life."""
        return sum(each.evaluations for each in self.copies)

    def _masks(self) -> np.ndarray:
        return np.stack([each.action_masks() for each in self.copies])

    def _ended(self) -> np.ndarray:
        return np.array([each._decision == each.n_decisions for each in self.copies])

    def _observe(self) -> np.ndarray:
        return self._observations.copy()

    def _begin(self, rows: Rows, seeds: Sequence[int | None] | None, options: dict[str, Any] | None) -> Infos:
        begun = self._chosen(rows)
        chosen = [None] * len(begun) if seeds is None else seeds
        answers = [each.reset(seed=seed, options=options) for each, seed in zip(begun, chosen, strict=True)]
        self._observations[rows] = [observation for observation, _ in answers]
        return self._gather([info for _, info in answers], self._always)

    def _act(self, rows: Rows, taken: np.ndarray) -> tuple[np.ndarray, Infos]:
        acting = self._chosen(rows)
        for each, action in zip(acting, taken.tolist(), strict=True):
            each._decide(action)
        ended = [each for each in acting if each._decision == each.n_decisions]
        evaluations = iter(self.single.evaluator.evaluate([each._settle() for each in ended]) if ended else ())
        self.single.evaluations += len(ended)
        answers = []
        for each, action in zip(acting, taken.tolist(), strict=True):
            finished = each._decision == each.n_decisions
            outcome = each._conclude(next(evaluations)) if finished else (each.no_reward, {})
            answers.append(each._answer(action, *outcome))
        self._observations[rows] = [answer[0] for answer in answers]
        infos = [answer[4] for answer in answers]
        return np.array([answer[1] for answer in answers]), self._gather(infos, infos[0] if ended else self._always)

    def _chosen(self, rows: Rows) -> list[QuantizationEnv]:
        return self.copies[rows] if isinstance(rows, slice) else [self.copies[row] for row in rows]

    def _gather(self, infos: list[dict[str, Any]], known: Iterable[str]) -> Infos:
        return self._information.many(len(infos), {key: np.array([info[key] for info in infos]) for key in known})
