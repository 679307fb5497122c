"""Many environments over one evaluation table, stepped together: NumPy arrays, and no loop over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from quantenv.core.arguments import whole_number
from quantenv.core.errors import QuantenvError, shown
from quantenv.envs.constraints import Reject
from quantenv.envs.copies import Copies, Infos, Rows
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.hardware.budget import TOLERANCE


class VectorTableEnv(Copies):
    """N copies of a `QuantizationEnv` over an evaluation table, equal to it in every number.

    All episodes have the same number of decisions, so that copies which begin together are always at the same one and
    are stepped at once. Copies that a `reset_mask` has put out of step are stepped in groups.
    """

    def __init__(
        self,
        num_envs: int = 1,
        single: QuantizationEnv | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the environments.

        Args:
            num_envs: Copies, N, at least 1.
            single: The environment to copy, whose evaluations are counted too; None makes one.
            autoreset_mode: When an episode that has ended gives way to the next: see `quantenv.envs.copies.Copies`.
                `gymnasium.make_vec` passes it on as an argument of its own, not in its `vector_kwargs`, which Gymnasium
                keeps for `SyncVectorEnv` and `AsyncVectorEnv`.
            max_episode_steps: A time limit, which Gymnasium passes on from an `EnvSpec`; no episode may be longer.
            **kwargs: Without `single`, arguments of `QuantizationEnv`; with a table, ``decisions="weights"``, a
                constraint ``mask`` or ``reject``, and no rendering.

        Raises:
            QuantenvError: If an argument is out of range, or beyond what this environment does.
        """
        if single is None:
            single = QuantizationEnv(**kwargs)
        elif not isinstance(single, QuantizationEnv):
            raise QuantenvError(f"single is {shown(single)}: expected a QuantizationEnv without wrappers.")
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
        longest = None if max_episode_steps is None else whole_number(max_episode_steps, "max_episode_steps")
        if longest is not None and longest < single.n_decisions:
            raise QuantenvError(
                f"max_episode_steps={longest} would cut episodes of {single.n_decisions} decisions off, which "
                "then have no allocation: leave it out."
            )
        super().__init__(single, num_envs, autoreset_mode)
        self.evaluations = 0
        """Evaluations charged, over all copies: episodes finished in this environment's life."""
        self._table: EvaluationTable = single.table
        walk, count = single.walk, self.num_envs
        self._mean_bits = walk.mean_bits
        # What each option of each group costs, and where it leads in the table: (G, n, R) and (G, n).
        weight = np.array(walk.bits) - 1
        activation = np.array(self._table.activation_bits) - 1
        values = single.episode_costs.rows.values  # and no terms, for activations are not decided
        self._prices = np.ascontiguousarray(np.moveaxis(values[:, :, weight, activation], 0, -1))
        option = np.array([self._table.bits.index(bits) for bits in walk.bits])
        self._places = np.array(self._table.strides)[:, None] * option
        decided = np.isin(np.arange(len(walk.members)), walk.groups)
        self._first_place = sum(
            self._table.bits.index(int(bits)) * stride
            for bits, stride, free in zip(walk.start[:, 0], self._table.strides, decided, strict=True)
            if not free
        )
        self._budgets = {f"budget_{budget.metric}": budget.limit for budget in single.budgets}
        self._decision = np.zeros(count, dtype=np.int64)
        self._place = np.zeros(count, dtype=np.int64)
        """Where each copy's decisions so far lead in the table, int64 (N,)."""
        self._spent = np.zeros((count, len(single.episode_costs.start)))
        self._previous_bits = np.zeros(count)
        self._executed = np.zeros((count, walk.n_decisions), dtype=np.int64)
        self._open = np.ones((count, walk.n_actions), dtype=bool)
        self._finished = np.zeros(count, dtype=np.int64)
        """Episodes that each copy has finished since it was last seeded, int64 (N,)."""

    def _masks(self) -> np.ndarray:
        return self._open.copy()

    def _ended(self) -> np.ndarray:
        return self._decision == self.single.n_decisions

    def _begin(self, rows: Rows, seeds: Sequence[int | None] | None, options: dict[str, Any] | None) -> Infos:
        if seeds is not None:
            seeded = [seed is not None for seed in seeds]
            self._finished[np.arange(self.num_envs)[rows][seeded]] = 0
        self._decision[rows] = 0
        self._place[rows] = self._first_place
        self._spent[rows] = self.single.episode_costs.start
        self._previous_bits[rows] = 0.0
        self._executed[rows] = 0
        self._open_at(0, rows)
        return self._infos(rows, {})

    def _observe(self) -> np.ndarray:
        decision: Any = self._decision
        if (decision == decision[0]).all():
            decision = int(decision[0])
        return self.single.observer.observe(decision, 0, self._previous_bits, self._spent)

    def _act(self, rows: Rows, taken: np.ndarray) -> tuple[np.ndarray, Infos]:
        decisions = self._decision[rows].copy()  # which taking them changes
        if (decisions == decisions[0]).all():
            return self._act_at(int(decisions[0]), rows, taken)
        copies = np.arange(self.num_envs)[rows]
        rewards, infos = np.zeros(len(copies)), dict[str, np.ndarray]()
        for decision in np.unique(decisions).tolist():
            among = np.flatnonzero(decisions == decision)
            rewards[among], found = self._act_at(decision, copies[among], taken[among])
            for key, values in found.items():
                infos.setdefault(key, np.zeros((len(copies), *values.shape[1:]), values.dtype))[among] = values
        return rewards, infos

    def _act_at(self, decision: int, rows: Rows, taken: np.ndarray) -> tuple[np.ndarray, Infos]:
        """Takes one decision in copies that are all at it."""
        walk, open_options = self.single.walk, self._open[rows]
        executed, closed = taken, np.flatnonzero(~open_options[np.arange(len(taken)), taken])
        if len(closed):
            order = walk.preference[taken[closed]]
            nearest = np.take_along_axis(open_options[closed], order, axis=1).argmax(axis=1)
            executed = taken.copy()
            executed[closed] = order[np.arange(len(closed)), nearest]
        group = walk.groups[decision]
        self._executed[rows, decision] = executed
        self._place[rows] += self._places[group, executed]
        self._spent[rows] += self._prices[group, executed]
        self._previous_bits[rows] = self._mean_bits[executed]
        self._decision[rows] += 1
        self._open_at(decision + 1, rows)
        known: Infos = {"executed_action": executed, "corrected": (executed != taken).astype(np.int64)}
        rewards = np.zeros(len(taken))
        if decision + 1 == walk.n_decisions:
            rewards, outcome = self._finish(rows)
            known |= outcome
        return rewards, self._infos(rows, known)

    def _open_at(self, decision: int, rows: Rows) -> None:
        """Opens the options of a decision in copies that are all at it."""
        if decision == self.single.n_decisions:
            self._open[rows] = True
        else:
            spent = self._spent[rows][:, self.single.masked]
            self._open[rows] = self.single.masks.options(decision, 0).open_many(spent)

    def _infos(self, rows: Rows, known: Infos) -> Infos:
        """Returns infos: what is always known, and `known`."""
        always: Infos = {
            "action_mask": self._open[rows].astype(np.int8),
            "decision": self._decision[rows].copy(),
            "evaluations": self._finished[rows].copy(),
            "measured_evaluations": self.single.shown_evaluations,
            **self._budgets,
        }
        return self._information.many(len(always["action_mask"]), always | known)

    def _finish(self, rows: Rows) -> tuple[np.ndarray, Infos]:
        """Looks the finished allocations up and returns the rewards and the infos' outcomes."""
        single, table, places = self.single, self._table, self._place[rows]
        count = len(places)
        bits = np.tile(single.walk.start, (count, 1, 1))
        bits[:, single.walk.groups, 0] = np.array(single.bits)[self._executed[rows]]
        bits = single.walk.per_layer(bits)
        accuracy = table.correct["search"][places] / single.reference.samples
        loss = table.loss["search"][places]
        self.evaluations += count
        single.evaluations += count
        self._finished[rows] += 1

        costs = np.ascontiguousarray(single.network_costs.of(bits).T)  # (R, K)
        ratios = costs[:, single.budgeted] / single.limits
        feasible = (ratios <= 1 + TOLERANCE).all(axis=1)
        rewards = single.price(accuracy, costs)
        if isinstance(single.constraint_rule, Reject):
            rewards = np.where(feasible, rewards, single.constraint_rule.infeasible_reward)
        outcome = {
            "accuracy": accuracy,
            "loss": loss,
            **{f"cost_{metric}": cost for metric, cost in zip(single.tables, costs.T.copy(), strict=True)},
            "feasible": feasible.astype(np.int64),
            "bits": bits,
            "executed_actions": self._executed[rows].copy(),
        }
        if single.regret is not None:
            best = single.regret.optimum.best.evaluation
            outcome["regret"] = np.where(feasible, best.accuracy - accuracy, np.inf)
            outcome["regret_loss"] = np.where(feasible, loss - best.loss, np.inf)
            outcome["regret_standard_error"] = np.full(count, single.regret.standard_error)
        return rewards, outcome
