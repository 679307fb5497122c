"""BudgetSweepEnv: another budget in every episode, so that one policy learns the whole accuracy-cost front."""

from difflib import get_close_matches
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from quantenv.core.arguments import plain, read_options, read_seed, whole_number
from quantenv.core.errors import QuantenvError, shown, unknown_name
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.observations import Observer, describe_groups
from quantenv.envs.subject import TaskLike
from quantenv.hardware.budget import Budget, feasible_interval

#: The observation's last feature: where the episode's budget lies between the cheapest allocation and the highest one.
BUDGET_SHARE = "budget_share"

#: Each budget has masks of its own, which are made beforehand.
MOST_LEVELS = 10_000

#: What a single budget is needed for, and what stands in the way of another one in each episode.
_FIXED = {"reward": "accuracy", "regret": False}


class BudgetSweepEnv(QuantizationEnv):
    """A `QuantizationEnv` that draws the budget of each episode and shows it: for budget-conditioned policies.

    The budgets are `levels` of them, evenly spaced: level i of n allows (i + 1) / n of the way from the cheapest
    allocation's cost to `budget`, or to the dearest allocation's cost where that is less. Everything else is
    `QuantizationEnv`'s, with the episode's budget as the budget: masks, projection, ``budget_<metric>`` and
    ``feasible`` in the info, ``budget_left`` in the observation. The observation ends with one more feature,
    `BUDGET_SHARE`, (i + 1) / n.

    Levels are drawn uniformly by a generator of the environment's own. It starts from the seed of the last seeded
    reset, 0 before the first one, so that the same seeds give the same budgets; copies (`vectorize`) draw apart from
    each other. ``reset(options={"level": i})`` sets the level instead, and draws nothing.
    """

    def __init__(self, task: TaskLike = "digits_table", *, levels: int = 16, budget: Any = 1.0, **options: Any) -> None:
        """Makes the environment.

        Args:
            task: As for `QuantizationEnv`.
            levels: Budgets, 2 to `MOST_LEVELS`.
            budget: The highest one, as for `QuantizationEnv`; of one metric.
            **options: Further arguments of `QuantizationEnv`, but for `reward` and `regret`.

        Raises:
            QuantenvError: If `levels` is out of range, there is not one budget, the cheapest allocation leaves nothing
                of it, or an option cannot be combined with changing budgets.
        """
        for name, value in _FIXED.items():
            if name in options and plain(options[name]) != value:
                raise QuantenvError(f"{name}={shown(options[name])} needs a fixed budget: leave it out.")
        super().__init__(task, budget=budget, **options)
        levels = whole_number(levels, "levels", 2, MOST_LEVELS)
        if len(self.budgets) != 1:
            raise QuantenvError(f"A sweep is over one budget, not {len(self.budgets)}: give one metric.")
        metric = self.budgets[0].metric
        least, most = feasible_interval(self.group_costs[metric], self.walk.allowed)
        most = min(self.budgets[0].limit, most)
        if not most > least:
            raise QuantenvError(
                f"The highest budget leaves only the cheapest allocation, which costs {least:g}: raise the budget."
            )
        self.level_limits = least + (most - least) * np.arange(1, levels + 1) / levels
        """The budgets in SI units, ascending, float64 (levels,)."""
        self.feature_names = (*self.feature_names, BUDGET_SHARE)
        self.observation_space = spaces.Box(0.0, 1.0, (len(self.feature_names),), dtype=np.float32)
        groups = describe_groups(self.layers, self.walk)
        sums, references = self.episode_costs, {name: table.reference for name, table in self.tables.items()}
        self._levels = []
        for limit in self.level_limits.tolist():
            self.limits, limits = np.array([limit]), {metric: limit}
            observer = Observer(self.feature_names, groups, self.walk, sums, limits, self._shown, references)
            self._levels.append(((Budget(metric, limit),), self.make_masks(), observer))
        self.level = levels - 1
        """Index of the running episode's budget."""
        self._vectorized = 0
        self._stream: tuple[int, ...] = ()
        self._generator = np.random.default_rng(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws a budget and begins an episode.

        Args:
            seed: Restarts the draws, beside what it does in `QuantizationEnv`.
            options: ``{"level": i}`` sets the level of this episode.

        Raises:
            QuantenvError: If there is no such level, or the seed or the options are malformed.
        """
        seed = read_seed(seed)
        given = read_options(options)
        for name in given.keys() - {"level"}:
            if get_close_matches(name, ["level"]):  # others are a wrapper's, and none of ours
                raise unknown_name("option of reset:", name, ["level"])
        level = given.get("level")
        if level is not None:
            level = whole_number(level, "level", 0, len(self._levels) - 1)
        if seed is not None:
            self._generator = np.random.default_rng((seed, *self._stream))
        self.level = int(self._generator.integers(len(self._levels))) if level is None else level
        self.budgets, self.masks, self.observer = self._levels[self.level]
        self.limits = self.level_limits[self.level : self.level + 1]
        return super().reset(seed=seed, options=options)

    def vectorize(self, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP) -> VectorEnv:
        """Makes copies of this environment that take every decision together; each draws budgets of its own."""
        copies: Any = super().vectorize(num_envs, autoreset_mode)
        for index, each in enumerate(copies.copies):
            each._stream = (*self._stream, self._vectorized, index)
            each._generator = np.random.default_rng((0, *each._stream))
        self._vectorized += 1
        return copies

    def _observe(self) -> np.ndarray:
        observation = super()._observe()
        observation[-1] = (self.level + 1) / len(self._levels)
        return observation
