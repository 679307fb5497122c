"""Many environments over one evaluation table, stepped together: NumPy arrays, and no loop over them."""

from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from quantenv.env.constraints import Reject
from quantenv.env.environment import QuantizationEnv
from quantenv.env.masks import cost_of
from quantenv.errors import QuantenvError
from quantenv.evaluate.table import EvaluationTable
from quantenv.hardware.budget import TOLERANCE

Observations = np.ndarray


class VectorTableEnv(VectorEnv[Observations, np.ndarray, np.ndarray]):
    """N copies of a `QuantizationEnv` over an evaluation table, equal to it in every number.

    All episodes have the same number of decisions, so all copies are always at the same one. Observations,
    rewards and infos are those of `gymnasium.vector.SyncVectorEnv` over N such environments with
    `AutoresetMode.SAME_STEP`: the step that ends the episodes also begins the next ones. It returns their first
    observations and their `action_mask` and `decision`; what the episodes ended with is in `infos["final_obs"]`,
    float32 (N, F), and `infos["final_info"]`. So every step is a decision of every copy. Every key k of an info is
    an array over the copies, beside a key _k that says which copies have it: all.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, num_envs: int = 1, single: QuantizationEnv | None = None, **kwargs: Any) -> None:
        """Makes the environments.

        Args:
            num_envs: Copies, N, at least 1.
            single: The environment to copy, whose evaluations are counted too; None makes one.
            **kwargs: Without `single`, arguments of `QuantizationEnv`; with a table, ``decisions="weights"``, a
                constraint ``mask`` or ``reject``, and no rendering.

        Raises:
            QuantenvError: If an argument is out of range, or beyond what this environment does.
        """
        if num_envs < 1:
            raise QuantenvError(f"num_envs is {num_envs}: expected at least 1.")
        if single is None:
            single = QuantizationEnv(**kwargs)
        elif kwargs:
            raise QuantenvError(f"single is given, so {', '.join(kwargs)} cannot be: leave one of them out.")
        if single.table is None:
            raise QuantenvError("This vectorised environment looks evaluations up: use a table task, or 'sync' mode.")
        if single.constraint not in ("mask", "reject"):
            raise QuantenvError(
                f"The vectorised environment has no constraint {single.constraint!r}: use mask or reject, or 'sync' "
                "mode."
            )
        if single.render_mode is not None:
            raise QuantenvError(
                "The vectorised environment does not render: leave render_mode out, or use 'sync' mode."
            )
        self.single = single
        """One environment of the same settings: layers, budgets, walk, feature names and so on are read here."""
        self.num_envs = num_envs
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        self.action_space = batch_space(single.action_space, num_envs)
        self.evaluations = 0
        """Evaluations charged, over all copies: episodes finished in this environment's life."""
        self._seeded_at = 0
        self._table: EvaluationTable = single.table
        walk = single.walk
        self._every_copy = np.arange(num_envs)
        self._mean_bits = walk.mean_bits
        # What each option of each group costs, and where it leads in the table: (G, n, K) and (G, n).
        weight = np.array(walk.bits) - 1
        activation = np.array(self._table.activation_bits) - 1
        self._prices = np.ascontiguousarray(np.moveaxis(single.group_costs[:, :, weight, activation], 0, -1))
        option = np.array([self._table.bits.index(bits) for bits in walk.bits])
        self._rows = np.array(self._table.strides)[:, None] * option
        decided = np.isin(np.arange(len(walk.members)), walk.groups)
        self._first_row = sum(
            self._table.bits.index(int(bits)) * stride
            for bits, stride, free in zip(walk.start[:, 0], self._table.strides, decided, strict=True)
            if not free
        )
        self._executed = np.zeros((num_envs, walk.n_decisions), dtype=np.int64)
        self._decision = -1  # no episode has begun

    def action_masks(self) -> np.ndarray:
        """Returns the open options of the decision at hand, bool (N, n).

        Raises:
            ResetNeeded: If no episode was begun.
        """
        if self._decision < 0:
            raise ResetNeeded("No episode is running: call reset() first.")
        return self._mask.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begins an episode in every copy. A seed makes `evaluations` in the infos count from 0 again."""
        super().reset(seed=seed)
        if seed is not None:
            self._seeded_at = self.evaluations
        return self._begin(), self._infos(action_mask=self._mask.astype(np.int8), decision=self._same(0))

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Executes one decision of every copy; the last one also begins the next episodes.

        Args:
            actions: Indices of options, whole numbers (N,).

        Returns:
            Observations float32 (N, F), rewards float64 (N,), terminated and truncated bool (N,), infos.

        Raises:
            QuantenvError: If the actions are not N whole numbers within the action space.
            ResetNeeded: If no episode was begun.
        """
        if self._decision < 0:
            raise ResetNeeded("No episode is running: call reset() first.")
        walk, decision = self.single.walk, self._decision
        taken = check_actions(actions, self.num_envs, walk.n_actions)
        executed, closed = taken, np.flatnonzero(~self._mask[self._every_copy, taken])
        if len(closed):
            order = walk.preference[taken[closed]]
            nearest = np.take_along_axis(self._mask[closed], order, axis=1).argmax(axis=1)
            executed = taken.copy()
            executed[closed] = order[np.arange(len(closed)), nearest]
        group = walk.groups[decision]
        self._executed[:, decision] = executed
        self._row += self._rows[group, executed]
        self._spent += self._prices[group, executed]
        self._previous_bits = self._mean_bits[executed]
        self._decision += 1

        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        observations = self._observe()
        info = {
            "action_mask": self._mask.astype(np.int8),
            "decision": self._same(self._decision),
            "executed_action": executed.copy(),
            "corrected": (executed != taken).astype(np.int64),
        }
        if self._decision == walk.n_decisions:
            terminated[:] = True
            rewards, outcome = self._finish()
            final = {"final_obs": observations, "final_info": self._infos(**info, **outcome)}
            observations = self._begin()
            info = {**final, "action_mask": self._mask.astype(np.int8), "decision": self._same(0)}
        return observations, rewards, terminated, np.zeros(self.num_envs, dtype=bool), self._infos(**info)

    def _begin(self) -> Observations:
        single, count = self.single, self.num_envs
        self._decision = 0
        self._row = np.full(count, self._first_row, dtype=np.int64)
        self._spent = np.tile(single.pinned_cost, (count, 1))
        self._previous_bits = np.zeros(count)
        self._executed = np.zeros((count, single.n_decisions), dtype=np.int64)
        return self._observe()

    def _observe(self) -> Observations:
        single = self.single
        if self._decision == single.walk.n_decisions:
            self._mask = np.ones((self.num_envs, single.walk.n_actions), dtype=bool)
        else:
            self._mask = single.masks.options(self._decision, 0).open_many(self._spent[:, single.masked])
        return single.observer.observe(self._decision, 0, self._previous_bits, self._spent)

    def _finish(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Looks the finished allocations up and returns the rewards and the infos' outcomes."""
        single, table = self.single, self._table
        bits = np.tile(single.walk.start, (self.num_envs, 1, 1))
        bits[:, single.walk.groups, 0] = np.array(single.bits)[self._executed]
        bits = single.walk.per_layer(bits)
        accuracy = table.correct["search"][self._row] / single.reference.samples
        loss = table.loss["search"][self._row].astype(np.float64)
        self.evaluations += self.num_envs
        single.evaluations += self.num_envs

        costs = np.ascontiguousarray(cost_of(single.costs, bits).T)  # (N, K)
        ratios = costs[:, single.budgeted] / single.limits
        feasible = (ratios <= 1 + TOLERANCE).all(axis=1)
        rewards = single.price(accuracy, costs)
        if isinstance(single.constraint_rule, Reject):
            rewards = np.where(feasible, rewards, single.constraint_rule.infeasible_reward)
        outcome = {
            "accuracy": accuracy,
            "loss": loss,
            **{f"cost_{metric}": cost for metric, cost in zip(single.tables, costs.T.copy(), strict=True)},
            **{f"budget_{budget.metric}": np.full(self.num_envs, budget.limit) for budget in single.budgets},
            "feasible": feasible.astype(np.int64),
            "bits": bits,
            "evaluations": self._same((self.evaluations - self._seeded_at) // self.num_envs),
            "executed_actions": self._executed,
        }
        if single.regret is not None:
            best = single.regret.optimum.best.evaluation
            outcome["regret"] = np.where(feasible, best.accuracy - accuracy, np.inf)
            outcome["regret_loss"] = np.where(feasible, loss - best.loss, np.inf)
            outcome["regret_standard_error"] = np.full(self.num_envs, single.regret.standard_error)
        return rewards, outcome

    def _same(self, value: int) -> np.ndarray:
        return np.full(self.num_envs, value, dtype=np.int64)

    def _infos(self, **values: Any) -> dict[str, Any]:
        """Adds to every key the mask of the copies that have it, as Gymnasium's vectorised infos do: all."""
        return values | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in values}


def check_actions(actions: np.ndarray, num_envs: int, n_actions: int) -> np.ndarray:
    """Returns the actions of N copies as int64 (N,).

    Raises:
        QuantenvError: If they are not N whole numbers from 0 to ``n_actions - 1``.
    """
    taken = np.asarray(actions)
    if taken.shape != (num_envs,) or taken.dtype.kind not in "iu" or ((taken < 0) | (taken >= n_actions)).any():
        raise QuantenvError(f"Actions are {actions!r}: expected {num_envs} whole numbers from 0 to {n_actions - 1}.")
    return taken.astype(np.int64)
