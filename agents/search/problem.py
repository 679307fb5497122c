"""What a baseline knows of an environment without evaluating anything: decisions, costs and budgets."""

import gymnasium
import numpy as np

from agents.base import problem_size
from quantenv.envs.environment import QuantizationEnv
from quantenv.hardware.budget import TOLERANCE


class Problem:
    """The decisions of an environment as a search over arrays.

    A candidate is one option index per decision, int64 (T,): the actions that make an allocation. Candidates come in
    batches, (k, T).
    """

    def __init__(self, env: gymnasium.Env) -> None:
        """Reads the environment.

        Args:
            env: A QuantizationEnv, wrapped or not.

        Raises:
            QuantenvError: If it is another environment.
        """
        _, self.n_actions, self.n_decisions = problem_size(env)
        inner: QuantizationEnv = env.unwrapped  # type: ignore[assignment]
        self.walk = inner.walk
        """The decisions and their options."""
        self.costs = inner.budget_rows
        """Costs of the walk's groups in the budgeted sums, M rows: one for each budget or step of a maximum."""
        self.limits = inner.row_limits
        """The budgets of these sums, float64 (M,)."""
        self.budgets = len(inner.budgets)
        """How many budgets there are."""
        self._columns = np.array([1 if kind == "activations" else 0 for kind in self.walk.kinds])

    def bits(self, actions: np.ndarray) -> np.ndarray:
        """Returns the (weight bits, activation bits) of the walk's groups, int64 (k, G, 2), of candidates (k, T)."""
        walk, decided = self.walk, self.walk.options[actions]  # (k, T, 2)
        bits = np.tile(walk.start, (len(actions), 1, 1))
        if walk.mode == "joint":
            bits[:, walk.groups] = decided
        else:
            bits[:, walk.groups, self._columns] = decided[..., 0]
        return bits

    def loads(self, actions: np.ndarray) -> np.ndarray:
        """Returns the share of each limit that candidates (k, T) take, float64 (k, M): above 1 is too much."""
        return self.costs.cost_of(self.bits(actions)).T / self.limits

    def legal(self, actions: np.ndarray) -> np.ndarray:
        """Returns whether the device supports the bits of candidates (k, T), bool (k,)."""
        bits = self.bits(actions)
        groups = np.arange(bits.shape[1])
        return self.walk.allowed[groups, bits[..., 0] - 1, bits[..., 1] - 1].all(axis=1)

    def feasible(self, actions: np.ndarray) -> np.ndarray:
        """Returns whether candidates (k, T) are legal and meet every budget, bool (k,)."""
        return self.legal(actions) & (self.loads(actions) <= 1 + TOLERANCE).all(axis=1)
