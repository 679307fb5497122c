"""Copies of one environment that decide together, so that their allocations are evaluated in one batch."""

import copy
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from quantenv.env.environment import QuantizationEnv
from quantenv.env.vector import VectorTableEnv, check_actions
from quantenv.errors import QuantenvError
from quantenv.evaluate.table_evaluator import TableEvaluator


def vectorize(single: QuantizationEnv, num_envs: int) -> VectorEnv:
    """Makes copies of an environment that take every decision together.

    Args:
        single: The environment. Its evaluator, constraint and counts are shared; an episode running in it is not.
        num_envs: Copies, N, at least 1.

    Returns:
        A `VectorTableEnv` where that gives the same answers without evaluating, else a `LockstepEnv`.

    Raises:
        QuantenvError: If there is less than one copy.
    """
    plain = type(single) is QuantizationEnv  # what other environments do in an episode is not in `VectorTableEnv`
    looked_up = plain and isinstance(single.evaluator, TableEvaluator) and single.constraint in ("mask", "reject")
    return VectorTableEnv(num_envs, single=single) if looked_up else LockstepEnv(single, num_envs)


class LockstepEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N copies of a `QuantizationEnv` whose finished allocations are evaluated in one batch.

    Otherwise as `VectorTableEnv`: the same arrays, the same `AutoresetMode.SAME_STEP`, every copy always at the same
    decision. A constraint that learns does so from one copy after the other, as if they had run one after the other.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, single: QuantizationEnv, num_envs: int) -> None:
        """Copies an environment.

        Args:
            single: The environment; what it was built from is shared, not copied.
            num_envs: Copies, N, at least 1.

        Raises:
            QuantenvError: If there is less than one copy.
        """
        if num_envs < 1:
            raise QuantenvError(f"num_envs is {num_envs}: expected at least 1.")
        self.single = single
        """The environment that was copied: layers, budgets, walk, feature names and so on are read here."""
        self.num_envs = num_envs
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        self.action_space = batch_space(single.action_space, num_envs)
        self.copies = [copy.copy(single) for _ in range(num_envs)]  # shallow: `reset` renews what an episode changes
        """The copies."""
        for each in self.copies:
            each.evaluations = each._seeded_at = 0
        self._began = False

    @property
    def evaluations(self) -> int:
        """Evaluations charged, over all copies: episodes finished in this environment's life."""
        return sum(each.evaluations for each in self.copies)

    def action_masks(self) -> np.ndarray:
        """Returns the open options of the decision at hand, bool (N, n).

        Raises:
            ResetNeeded: If no episode was begun.
        """
        return np.stack([each.action_masks() for each in self.copies])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in every copy. A seed also restarts counts and what the constraint has learnt."""
        super().reset(seed=seed)
        self._began = True
        return self._begin(seed)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Executes one decision of every copy; the last one also begins the next episodes.

        Args:
            actions: Indices of options, whole numbers (N,).

        Returns:
            Observations float32 (N, F), rewards float64 (N,), terminated and truncated bool (N,), infos.

        Raises:
            QuantenvError: If the actions are not N whole numbers within the action space.
            ResetNeeded: If no episode was begun.
        """
        if not self._began:
            raise ResetNeeded("No episode is running: call reset() first.")
        chosen = check_actions(actions, self.num_envs, self.single.walk.n_actions)
        taken = [each._decide(action) for each, action in zip(self.copies, chosen.tolist(), strict=True)]
        ended = self.copies[0]._decision == self.single.n_decisions
        if ended:
            allocations = [each._settle() for each in self.copies]
            evaluations = self.single.evaluator.evaluate(allocations)
            outcomes = [each._conclude(found) for each, found in zip(self.copies, evaluations, strict=True)]
            self.single.evaluations += self.num_envs
        else:
            outcomes = [(0.0, {})] * self.num_envs
        answers = [
            each._answer(action, *outcome) for each, action, outcome in zip(self.copies, taken, outcomes, strict=True)
        ]
        observations = np.stack([answer[0] for answer in answers])
        rewards = np.array([answer[1] for answer in answers])
        terminated, truncated = np.full(self.num_envs, ended), np.zeros(self.num_envs, dtype=bool)
        infos = self._gather([answer[4] for answer in answers])
        if ended:
            final = {"final_obs": observations, "final_info": infos}
            observations, begun = self._begin(None)
            infos = self._mark(final) | begun
        return observations, rewards, terminated, truncated, infos

    def _begin(self, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        begun = [each.reset(seed=seed) for each in self.copies]
        return np.stack([observation for observation, _ in begun]), self._gather([info for _, info in begun])

    def _gather(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        return self._mark({key: np.stack([np.asarray(info[key]) for info in infos]) for key in infos[0]})

    def _mark(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Adds to every key the mask of the copies that have it, as Gymnasium's vectorised infos do: all."""
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}
