"""HAQEnv: HAQ's search (Wang et al., CVPR 2019), with what its published code does otherwise as named switches.

The paper is arXiv 1811.08886. The code is mit-han-lab/haq: `lib/env/linear_quantize_env.py` (latency mode) and
`lib/env/quantize_env.py` (size mode). The switches' defaults are the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.core.arguments import named, one_of
from quantenv.core.errors import QuantenvError, shown, unknown_name
from quantenv.core.typed import checked
from quantenv.envs.constraints import Constraint
from quantenv.envs.decisions import DECISIONS
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.masks import within
from quantenv.envs.projection import project
from quantenv.envs.subject import TaskLike
from quantenv.envs.walk import Walk
from quantenv.evaluation.base import Evaluation
from quantenv.hardware.budget import check_feasible
from quantenv.hardware.rows import CostRows

#: When the first and the last layer are kept at 8 bits.
PINS = ("always", "over_budget", "never")

#: HAQ's factor of the reward, lambda.
REWARD_SCALE = 0.1


@dataclass(frozen=True)
class HAQSwitches:
    """What of HAQ's search is as published in the paper (the defaults) or as in the code."""

    pins: str = "always"
    """First and last layer at 8 bits: ``always``, and not decided; or, as the code does, decided like the others and
    overwritten only when the allocation is ``over_budget``; ``never`` in HAQ's size mode."""
    first_activation_priced_at_7: bool = False
    """The code writes -1 as the activation bits of the overwritten first layer, which looks its cost up at index -2:
    that of 7 bits. By its true cost the projected allocation can then be over budget. Only with ``pins: over_budget``.
    """
    stale_first_observation: bool = False
    """The code writes the previous action into its table of states and never resets it, so that an episode's first
    observation shows the bits that the previous episode chose for the first layer's weights. Not in size mode."""
    inverted_flag: bool = False
    """``decides_weights`` is 0 for weights and 1 for activations in the code, but for an episode's first decision,
    where it is 1. Not in size mode, whose states have no such entry."""
    raw_previous_bits: bool = False
    """The code's size mode shows the previous bits themselves, 4 at first, where all else is within 0 and 1."""
    replay_proposed: bool = False
    """The code stores the proposed actions in replay, with the reward of the projected ones: ``executed_actions`` in
    the last info are then those before projection."""
    accuracy_in_points: bool = False
    """Rewards are 0.1 x the difference of accuracies in percent, as in the code, not of their shares."""

    @classmethod
    def of(cls, values: "Mapping[str, Any] | HAQSwitches") -> "HAQSwitches":
        """Reads switches by name.

        Raises:
            QuantenvError: If a name is unknown or a value of the wrong type.
        """
        if isinstance(values, HAQSwitches):
            return values
        known = {option.name: option.type for option in fields(cls)}
        given = named(values, "switches", "what they are")
        for name, value in given.items():
            if name not in known:
                raise unknown_name("switch of HAQ:", name, known)
            checked(value, known[name], f"Switch {name} of HAQ")
        return cls(**given)

    def __post_init__(self) -> None:
        if self.pins not in PINS:
            raise unknown_name("value of HAQ's switch pins:", self.pins, PINS)
        if self.first_activation_priced_at_7 and self.pins != "over_budget":
            raise QuantenvError("first_activation_priced_at_7 has no effect without pins: over_budget.")


class HAQEnv(QuantizationEnv):
    """HAQ's search as a `QuantizationEnv`: projection, HAQ's 10 features, reward 0.1 x (accuracy - reference).

    `switches` say where it follows the published code rather than the paper. ``decisions="weights+activations"`` is
    HAQ's latency and energy mode, ``"weights"`` its size mode. Where the first observation is stale, an episode
    depends on the one before it; seeding starts anew.
    """

    def __init__(
        self, task: TaskLike = "digits", *, switches: Mapping[str, Any] | HAQSwitches | None = None, **options: Any
    ) -> None:
        """Makes the environment.

        Args:
            task: As for `QuantizationEnv`.
            switches: `HAQSwitches`, or a mapping of those that differ from the defaults.
            **options: Further arguments of `QuantizationEnv`; by default a latency budget of 0.6, alternating
                decisions. `pinned`, `reward_scale` and the constraint are HAQ's and cannot be given otherwise.

        Raises:
            QuantenvError: If an option contradicts HAQ, or a switch has no effect on this kind of decisions.
            InfeasibleBudgetError: If no allocation meets the budget, pins included.
        """
        self.switches = HAQSwitches.of({} if switches is None else switches)
        """Where the search follows the published code."""
        decisions = one_of(options.setdefault("decisions", "weights+activations"), "decisions", DECISIONS)
        alternating = decisions == "weights+activations"
        if decisions == "hierarchical":
            raise QuantenvError("decisions='hierarchical' is not HAQ's search: use weights+activations or weights.")
        for name in ("stale_first_observation", "inverted_flag", "first_activation_priced_at_7"):
            if getattr(self.switches, name) and not alternating:
                raise QuantenvError(f"Switch {name} of HAQ is about decisions='weights+activations': leave it out.")
        for name, only in (("constraint", "project"), ("reward", "accuracy"), ("pinned", None)):
            given = options.setdefault(name, only)
            if given is not only and not (isinstance(given, str) and given == only):
                raise QuantenvError(f"{name}={shown(given)} is not HAQ's search, where it is {only!r}: leave it out.")
        if "reward_scale" in options:
            raise QuantenvError("HAQ's reward_scale is 0.1: leave it out, or set the switch accuracy_in_points.")
        options["pinned"] = "first_last" if self.switches.pins == "always" else None
        options.setdefault("metric", "latency")
        options.setdefault("budget", 0.6)
        options.setdefault("observation", "haq")
        scale = REWARD_SCALE * (100 if self.switches.accuracy_in_points else 1)
        super().__init__(task, reward_scale=scale, **options)
        if self.switches.pins == "over_budget":
            self.constraint_rule = self._overwriting()
        self._previous_column = self._column("previous_bits", self.switches.raw_previous_bits)
        self._stale_column = self._column("previous_bits", self.switches.stale_first_observation)
        self._flag_column = self._column("decides_weights", self.switches.inverted_flag)
        if self._previous_column is not None:
            high = np.ones(self.observer.space.shape, dtype=np.float32)
            high[self._previous_column] = MAX_BITS
            self.observation_space = spaces.Box(0.0, high, dtype=np.float32)
        self._stale = 1.0
        self._proposed = np.zeros(self.n_decisions, dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode; a seed forgets the earlier ones."""
        if seed is not None:
            self._stale = 1.0
        return super().reset(seed=seed, options=options)

    def _column(self, feature: str, wanted: bool) -> int | None:
        """Returns a feature's column if a switch is about it."""
        if not wanted:
            return None
        if feature not in self.feature_names:
            raise QuantenvError(f"This observation has no {feature}, which a switch of HAQ is about: use haq or full.")
        return self.feature_names.index(feature)

    def _observe(self) -> np.ndarray:
        observation = super()._observe()
        if self._stale_column is not None:
            if self._decision == 1:
                self._stale = float(observation[self._stale_column])
            elif self._decision == 0:
                observation[self._stale_column] = self._stale
        if self._previous_column is not None:
            observation[self._previous_column] = self._previous_bits if self._decision else 4.0
        if self._flag_column is not None and self._decision:
            observation[self._flag_column] = 1 - observation[self._flag_column]
        return observation

    def _settle(self) -> Allocation:
        self._proposed = self._executed
        return super()._settle()

    def _conclude(self, evaluation: Evaluation) -> tuple[float, dict[str, Any]]:
        reward, outcome = super()._conclude(evaluation)
        if self.switches.replay_proposed:
            outcome["executed_actions"] = self._proposed.copy()
        return reward, outcome

    def _overwriting(self) -> "OverwriteEnds":
        """Makes the constraint that pins only what is over budget."""
        ends = self.walk.groups[[0, -1]]
        if not self.walk.allowed[ends, -1, -1].all():
            raise QuantenvError(f"pins: over_budget needs {MAX_BITS} bits on offer, for the first and the last layer.")
        allowed = self.walk.allowed.copy()
        allowed[ends] = False
        allowed[ends, -1, -1] = True
        check_feasible(self.budgets, self.tables, allowed[self.walk.group_of])
        return OverwriteEnds(ends, allowed, self.switches.first_activation_priced_at_7)


@dataclass
class OverwriteEnds(Constraint):
    """The projection of HAQ's code: above the budget, the first and last layer take 8 bits and the others come down.

    `_final_action_wall` of the published code lowers one decision after the other, from the last to the first, and
    overwrites the ends after each; so the ends are overwritten before anything else counts.
    """

    ends: np.ndarray
    """Groups of the first and the last layer, int64 (2,)."""
    allowed: np.ndarray
    """Which bits each group can have, the ends' pinned, bool (G, 8, 8)."""
    first_at_7: bool
    """Whether the first one's overwritten activations are priced as 7 bits."""

    def execute(self, bits: np.ndarray, walk: Walk, costs: CostRows, limits: np.ndarray) -> np.ndarray:
        """Returns the projected allocation; `bits` itself if that is within budget."""
        if within(costs.cost_of(bits), limits):
            return bits
        bits = bits.copy()
        bits[self.ends] = MAX_BITS
        if self.first_at_7:
            values = costs.values.copy()
            values[:, self.ends[0], -1, -1] = values[:, self.ends[0], -1, -2]
            costs = CostRows(values, costs.terms)
        # The ends have one pair of bits there, so nothing lowers them.
        return project(bits, replace(walk, allowed=self.allowed), costs, limits)
