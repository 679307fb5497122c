"""QuantizationEnv: choosing the bits of every layer of a network, as a Gymnasium environment."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv

from quantenv.core.allocation import Allocation, channels_in
from quantenv.core.arguments import read_options, read_seed, switch, whole_number
from quantenv.core.errors import QuantenvError, shown
from quantenv.core.ties import Tied
from quantenv.envs.constraints import make_constraint
from quantenv.envs.costs import EpisodeCosts, group_costs
from quantenv.envs.decisions import Pins, make_walk
from quantenv.envs.information import Information, info_fields
from quantenv.envs.masks import Masks, within
from quantenv.envs.observations import Observer, check_sensitivity, describe_groups, feature_names
from quantenv.envs.regret import Regret
from quantenv.envs.rendering import allocation_text
from quantenv.envs.rewards import make_reward
from quantenv.envs.shown_sensitivity import ShownSensitivity
from quantenv.envs.subject import Subject, TaskLike
from quantenv.evaluation.base import Evaluation, Evaluator
from quantenv.hardware.budget import check_feasible, parse_budgets
from quantenv.hardware.costs import NetworkCosts, compile_costs
from quantenv.hardware.devices import load_device
from quantenv.hardware.rows import CostRows

#: Bit options of a network; a table offers those that it holds.
BITS = (2, 3, 4, 5, 6, 7, 8)

#: What a step returns: observation, reward, terminated, truncated, info.
Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class QuantizationEnv(gymnasium.Env[np.ndarray, int]):
    """Choosing the bits of every layer of a pretrained network under a budget.

    ## Description
    The network's quantizable layers are visited in execution order. Each decision gives one layer's weights,
    its input activations, or both their bit-widths, or those of a group of tied layers at once. Where the task has
    channel groups, they are layers here, or each layer takes two decisions (`decisions="hierarchical"`). The finished
    allocation is priced in accuracy by an evaluator and in size, bit operations, latency, energy and peak activation
    memory by a device's cost tables. The environment holds no randomness: an episode follows from its actions.

    ## Action Space
    `Discrete(B)`: an index into the `bits` on offer, ascending; with `decisions="joint"`, `Discrete(B * B)`:
    weight index * B + activation index. `action_masks()`, and `info["action_mask"]`, say which options are
    open: those the device supports and, under `constraint="mask"`, those from which the budget can still be
    met. A closed option that is taken is executed as the nearest open one in bits (ties: fewer bits), and
    reported. An action outside the space is an error.

    ## Observation Space
    `Box(0, 1, (F,), float32)`; `feature_names` names the features, which `quantenv.envs.observations` defines:
    `haq` (10), `blog` (8), or `full`: both, and two for each budgeted metric. After the last decision its
    layer is described once more, with everything settled.

    ## Reward
    Terminal; 0 before. `accuracy`: reward_scale * (accuracy - reference accuracy). `weighted`: reward_scale *
    (w_accuracy * accuracy - sum of w_m * cost_m / budget_m), with a metric's 8-bit cost where it has no
    budget. The constraint then has its say: `mask` and `project` leave it, `reject` replaces the reward of an
    infeasible allocation, `lagrangian` subtracts lambda * sum of max(0, cost / budget - 1).

    ## Starting State
    The first decision, nothing settled but the pinned layers. `previous_bits` is 1, as in HAQ.

    ## Episode End
    Terminated after the last decision; one evaluation is charged. Never truncated.

    ## Information
    Flat and numeric: NumPy arrays and scalars (int64 and float64 where nothing else is said), and the same keys,
    shapes and types at reset, at each step and at the end. What is not known yet is -1 (not NaN: Gymnasium's checker
    takes it for a difference).
    Known always: `action_mask` (int8, (n,); all ones after the last decision), `decision` (index of the next
    decision), `budget_<metric>` (SI units), `evaluations` (episodes finished since the environment was last seeded:
    the same seed gives the same info), `measured_evaluations` (what measuring the sensitivities costs that the
    observation shows, in evaluations of one allocation on the whole search split: besides `evaluations`, and once for
    an environment's life; 0 if it shows none, if they were given, or within `unread`).
    From the first step on: `executed_action`, `corrected` (1 if the action executed was not the one taken).
    At the end: `accuracy`, `loss`, `cost_<metric>` (SI units), `feasible` (0 or 1), `bits` ((L, 2): weight and
    activation bits as evaluated), `executed_actions` ((T,): the actions that make `bits`; what an agent should learn
    from); under `lagrangian` `penalty_lambda`, the lambda that priced this episode; and with `regret=True` `regret`
    (best feasible accuracy of the table on the search split less this one, 0-1), `regret_loss` (this loss less the
    best allocation's, nats; negative if accuracy was given up for loss) and `regret_standard_error` (binomial, of the
    best accuracy). An infeasible allocation is no answer: its regrets are inf.

    ## Arguments
    See `__init__`.

    ## Version History
    - v0: first version. Before quantenv 0.1.0 infos held each key only where it was known, as Python's numbers; no
      number has changed.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        task: TaskLike = "digits",
        *,
        metric: str | Sequence[str] = "size",
        budget: float | str | Sequence[float | str] | Mapping[str, float | str] = 0.4,
        device: str = "generic",
        decisions: str = "weights",
        bits: Sequence[int] | None = None,
        activation_bits: int = 8,
        observation: str = "full",
        constraint: str = "mask",
        constraint_options: Mapping[str, float] | None = None,
        reward: str = "accuracy",
        reward_scale: float = 1.0,
        reward_weights: Mapping[str, float] | None = None,
        pinned: Pins = None,
        tied: Tied = None,
        regret: bool = False,
        evaluator: str | Evaluator = "ptq",
        store: str | None = None,
        sensitivity: np.ndarray | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Makes the environment.

        Args:
            task: A registered task, a Task, or a table of one by name or itself; not used where `evaluator` is
                an object and `sensitivity` is given.
            metric: Metric or metrics the budget is about: size, bops, latency, energy, memory.
            budget: A ratio of the 8-bit cost, an absolute limit with a unit, one per metric, or a mapping
                from metrics to budgets; see `quantenv.hardware.budget.parse_budgets`.
            device: Name of a device, or path of its YAML description.
            decisions: ``weights``, ``weights+activations`` (a layer's weights, then its activations),
                ``joint``, or ``hierarchical`` (a layer's weights, then how their bits are spread over its channel
                groups; see `quantenv.envs.spreads`).
            bits: Bit options, 1-8; None means 2 to 8, or those of the table.
            activation_bits: Bits of all activations under ``decisions="weights"`` and ``"hierarchical"``.
            observation: ``haq``, ``blog`` or ``full``.
            constraint: ``mask``, ``project``, ``reject`` or ``lagrangian``; see `quantenv.envs.constraints`.
            constraint_options: Fields of the constraint.
            reward: ``accuracy`` or ``weighted``.
            reward_scale: Factor of the reward, > 0.
            reward_weights: For ``weighted``: weights >= 0 of ``accuracy`` (1 if left out) and of metrics (0).
            pinned: Layers that are not decided: ``first_last`` (at 8/8), or a mapping from layer names to
                bits or to (weight bits, activation bits).
            tied: Groups of layer names that are decided at once and have the same bits, each at its first layer;
                the other layers are decided one by one. None ties nothing, or what the table ties.
            regret: Whether the last info tells how far the allocation is from the best feasible one, for
                evaluation only: needs a table.
            evaluator: A registered evaluator, made for the task, or an Evaluator.
            store: Where a registered evaluator's results are kept, so that nothing is computed twice: an
                SQLAlchemy URL, a path, or ``off``; by default the user's store. Rewards and counts are the same.
            sensitivity: Harm of quantizing each layer, >= 0, shape (L,); measured on the task when the first
                observation shows it, if it is not given.
            render_mode: None, ``ansi`` or ``rgb_array``.

        Raises:
            QuantenvError: If a name is unknown or a value is out of range.
            InfeasibleBudgetError: If no allocation meets the budget.
        """
        if render_mode is not None and not (
            isinstance(render_mode, str) and render_mode in self.metadata["render_modes"]
        ):
            raise QuantenvError(f"render_mode is {shown(render_mode)}: expected None, 'ansi' or 'rgb_array'.")
        if not isinstance(device, str | os.PathLike):
            raise QuantenvError(f"device is {shown(device)}: expected a device's name, or the path of its YAML file.")
        self.render_mode = render_mode
        self._spec: EnvSpec | None = None
        self.constraint_rule = make_constraint(constraint, constraint_options)
        """What becomes of options and allocations that break a budget."""
        self.constraint = constraint
        """Name of the constraint."""
        self.device = load_device(device)
        """The device whose costs count."""

        subject = Subject(task, evaluator, store)
        self.subject = subject
        """What the environment is about, and what can be measured of it."""
        self.sensitivity = sensitivity
        """Harm of quantizing each layer as it was given, or None."""
        self.evaluator = subject.evaluator
        """What prices allocations in accuracy."""
        self.table = subject.table
        """The table in which evaluations are looked up, or None if they are computed."""
        if self.table is not None:
            bits = self.table.bits if bits is None else bits
            tied = self.table.groups if tied is None else tied
        self.layers = tuple(self.evaluator.layers)
        """The quantizable layers, length L."""
        self.reference = self.evaluator.reference
        """The float network's evaluation on the search split."""
        self.activations = subject.activations()
        """The network's stored tensors and products of activations."""
        self.tables = compile_costs(self.layers, self.activations, self.device, subject.codebooks)
        """Cost table of every metric the device defines."""
        self.budgets = parse_budgets(metric, budget, self.tables)
        """The budgets, absolute, in SI units."""
        self.walk = make_walk(
            decisions, BITS if bits is None else bits, activation_bits, pinned, self.layers, self.device, tied
        )
        """The decisions of an episode and their options."""
        subject.check_walk(self.walk)
        self.group_costs = {name: group_costs(self.walk, table) for name, table in self.tables.items()}
        """Costs of the walk's groups, by metric."""
        check_feasible(self.budgets, self.group_costs, self.walk.allowed)

        self.network_costs = NetworkCosts(self.tables)
        """What whole allocations cost in every metric, in the order of `tables`."""
        self.limits = np.array([budget.limit for budget in self.budgets])
        """The budgets, one each, float64."""
        self.budgeted = np.array([list(self.tables).index(budget.metric) for budget in self.budgets])
        """Index of each budget's metric among `tables`, int64."""
        self.episode_costs = EpisodeCosts(self.walk, self.group_costs, tuple(budget.metric for budget in self.budgets))
        """The sums that are kept while an episode runs, R of them; M have a budget."""
        limits = {budget.metric: budget.limit for budget in self.budgets}
        self.price = make_reward(
            reward,
            reward_scale,
            reward_weights,
            self.reference.accuracy,
            {name: limits.get(name, table.reference) for name, table in self.tables.items()},
        )
        """The penalty-free reward."""
        masks_budget = self.constraint_rule.masks_budget
        self.masked = self.episode_costs.budgeted[: None if masks_budget else 0]
        """Indices of the sums whose budgets close options, int64 (M,) or (0,)."""
        self.masks = self.make_masks()
        """Open options of every decision."""
        self.feature_names = feature_names(observation, tuple(limits))
        """Names of the observation's features, in order."""
        if sensitivity is not None:
            check_sensitivity(sensitivity, self.layers)  # whether or not it is shown
        self._shown: ShownSensitivity | None = None
        if "sensitivity" in self.feature_names:
            self._shown = ShownSensitivity(subject, sensitivity, self.layers, self.walk)
        self.observer = Observer(
            self.feature_names,
            describe_groups(self.layers, self.walk),
            self.walk,
            self.episode_costs,
            limits,
            self._shown,
            {name: table.reference for name, table in self.tables.items()},
        )
        """Writes the observations."""
        self.regret = Regret(self.table, self.budgets, self.tables, self.walk) if switch(regret, "regret") else None
        """What the best feasible allocation of the table is, if asked for."""
        self.observation_space = self.observer.space
        self.action_space = spaces.Discrete(self.walk.n_actions)  # type: ignore[assignment]
        self.evaluations = 0
        """Evaluations charged: episodes finished in this environment's life. Seeding does not set it back."""
        self._seeded_at = 0
        self._names = tuple(layer.name for layer in self.layers)
        self._channels = channels_in(self.layers)
        self.origin = subject.origin
        """Names of task and scheme that allocations carry; empty if no task was needed."""
        fields = info_fields(
            self.walk.n_actions,
            self.n_decisions,
            len(self.layers),
            self.tables,
            limits,
            (*self.constraint_rule.tells, *(self.regret.tells if self.regret else ())),
        )
        self.information = Information(fields)
        """Makes the infos."""
        self._every_option = np.ones(self.walk.n_actions, dtype=bool)
        self._mean_bits = self.walk.mean_bits.tolist()
        self._decision = -1  # no episode has begun
        self._bits = self.walk.start.copy()

    @property
    def spec(self) -> EnvSpec | None:
        """What `gymnasium.make` made this of, with the number of decisions as ``max_episode_steps``.

        So wrappers such as `TimeAwareObservation` know it, while Gymnasium's `TimeLimit` is not there: it would call
        the last step truncated, too. It is there where an environment is made anew of this spec.
        """
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None and spec.max_episode_steps is None:
            spec = dataclasses.replace(spec, max_episode_steps=self.n_decisions)
        self._spec = spec

    # What is decided --------------------------------------------------------------------------------------

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit options, ascending; actions index into them."""
        return self.walk.bits

    @property
    def decision_layers(self) -> np.ndarray:
        """Index of each decision's layer, the first one if several are tied, int64 (T,)."""
        return np.array([self.walk.members[group][0] for group in self.walk.groups])

    @property
    def n_decisions(self) -> int:
        """Decisions in an episode, T."""
        return self.walk.n_decisions

    @property
    def no_reward(self) -> Any:
        """The reward before the last decision."""
        return 0.0

    @property
    def allowed(self) -> np.ndarray:
        """Which (weight bits - 1, activation bits - 1) each layer can end with, bool (L, 8, 8)."""
        return self.walk.allowed_of_layers

    @property
    def row_limits(self) -> np.ndarray:
        """The budget of each budgeted sum, float64 (M,): steps of a maximum have the same."""
        return self.limits[self.episode_costs.budget_of]

    @cached_property
    def budget_rows(self) -> CostRows:
        """Costs of the walk's groups in the budgeted sums, M rows."""
        return self.episode_costs.rows.take(self.episode_costs.budgeted)

    def make_masks(self) -> Masks:
        """Works out the masks for the limits in force."""
        limits = self.row_limits[: len(self.masked)]
        return Masks(self.walk, self.episode_costs.rows.take(self.masked), limits)

    def action_masks(self) -> np.ndarray:
        """Returns the open options of the decision at hand, bool (n,); sb3-contrib calls it by this name.

        Raises:
            ResetNeeded: If no episode was begun.
        """
        if self._decision < 0:
            raise ResetNeeded("No episode is running: call reset() first.")
        return self._mask.copy()

    # What was measured for observations ------------------------------------------------------------------

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """Says that nobody reads the observations that are written within: nothing is then measured for them.

        Optimisers search like this. It holds for the copies that `vectorize` makes, too. The sensitivity in such
        observations is 0, unless others were read before.
        """
        with contextlib.nullcontext() if self._shown is None else self._shown.unread():
            yield

    @property
    def shown_evaluations(self) -> float:
        """What measuring the sensitivities costs that observations show now, in evaluations; 0 if nobody reads them."""
        return 0.0 if self._shown is None else self._shown.evaluations

    @property
    def measured_evaluations(self) -> float:
        """What was measured for the observations of this environment's life, in evaluations."""
        return 0.0 if self._shown is None else self._shown.measured_evaluations

    # An episode -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode. A seed also restarts what the constraint has learnt from earlier episodes.

        Args:
            seed: A whole number >= 0, or None.
            options: None of this environment's own; those of wrappers pass.

        Raises:
            QuantenvError: If the seed or the options are malformed.
        """
        seed = read_seed(seed)
        read_options(options)
        super().reset(seed=seed)
        if seed is not None:
            self.constraint_rule.restart()
            self._seeded_at = self.evaluations
        self._decision = 0
        self._budgets_known = {f"budget_{budget.metric}": np.float64(budget.limit) for budget in self.budgets}
        self._bits = self.walk.start.copy()
        self._spent = self.episode_costs.start.copy()
        self._reached = self.episode_costs.start_reached.copy()
        self._previous_bits = 0.0
        self._executed = np.zeros(self.n_decisions, dtype=np.int64)
        return self._observe(), self._info({})

    def step(self, action: int) -> Step:
        """Executes one decision; the last one evaluates the allocation.

        Raises:
            QuantenvError: If the action is outside the action space.
            ResetNeeded: If no episode is running.
        """
        if not 0 <= self._decision < self.walk.n_decisions:
            raise ResetNeeded("No episode is running: call reset() first.")
        usual = type(action) in (int, np.int64) and 0 <= action < self.walk.n_actions
        taken = self._decide(int(action) if usual else whole_number(action, "The action", 0, self.walk.n_actions - 1))
        if self._decision < self.walk.n_decisions:
            return self._answer(taken, self.no_reward, {})
        evaluation = self.evaluator.evaluate([self._settle()])[0]
        return self._answer(taken, *self._conclude(evaluation))

    def vectorize(self, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP) -> VectorEnv:
        """Makes copies of this environment that take every decision together and share its evaluator and counts.

        The finished allocations are evaluated in one batch, so that an evaluator can share work among them or hand
        them to workers, and what the constraint learns it learns from one copy after the other.

        Args:
            num_envs: Copies, N, at least 1.
            autoreset_mode: When an episode that has ended gives way to the next: see `quantenv.envs.copies.Copies`.

        Returns:
            A vectorised environment; see `quantenv.envs.lockstep`.

        Raises:
            QuantenvError: If there is less than one copy, or no such mode.
        """
        from quantenv.envs.lockstep import vectorize  # which is about this class

        return vectorize(self, num_envs, autoreset_mode)

    def render(self) -> Any:
        """Draws the allocation so far: text for ``ansi``, an image (H, W, 3) uint8 for ``rgb_array``."""
        if self.render_mode == "ansi":
            return allocation_text(self.layers, self.walk.per_layer(self._bits))
        if self.render_mode == "rgb_array":
            # matplotlib takes a while to load: only where it draws
            from quantenv.envs.figures import allocation_figure, figure_pixels

            return figure_pixels(allocation_figure(self.layers, self.walk.per_layer(self._bits)))
        return None

    def _observe(self) -> np.ndarray:
        """Works out the mask of the decision at hand and returns the observation."""
        weight_bits = 0
        if self._decision == self.walk.n_decisions:
            self._mask = self._every_option
        else:
            if self.walk.kinds[self._decision] == "activations":
                weight_bits = int(self._bits[self.walk.groups[self._decision], 0])
            self._mask = self.masks.open(self._decision, weight_bits, self._spent[self.masked], self._reached)
        return self.observer.observe(self._decision, weight_bits, self._previous_bits, self._spent)

    def _decide(self, taken: int) -> int:
        """Executes one decision, as the nearest open option if it is closed, and returns the action taken."""
        decision = self._decision
        executed = taken if self._mask[taken] else self.walk.nearest(taken, self._mask)
        self._executed[decision] = executed
        self._previous_bits = self._mean_bits[executed]
        if self.walk.settle(self._bits, decision, executed):
            group = self.walk.groups[decision]
            self.episode_costs.charge(self._spent, self._reached, group, *self._bits[group].tolist())
        self._decision += 1
        return taken

    def _answer(self, taken: int, reward: float, outcome: dict[str, Any]) -> Step:
        """Returns what a step returns after a decision."""
        executed = int(self._executed[self._decision - 1])
        observation = self._observe()
        info = self._info({"executed_action": executed, "corrected": executed != taken, **outcome})
        return observation, reward, self._decision == self.walk.n_decisions, False, info

    def _info(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the info of the decision at hand: what is always known, and `known`."""
        return self.information.one(
            {
                "action_mask": self._mask.astype(np.int8),
                "decision": self._decision,
                "evaluations": self.evaluations - self._seeded_at,
                "measured_evaluations": self.shown_evaluations,
                **self._budgets_known,
                **known,
            }
        )

    def _settle(self) -> Allocation:
        """Lets the constraint execute the finished allocation and returns it."""
        decided = self._bits
        self._bits = self.constraint_rule.execute(decided, self.walk, self.budget_rows, self.row_limits)
        if self._bits is not decided:
            self._executed = self.walk.actions(self._bits)
            self._previous_bits = self._mean_bits[self._executed[-1]]
            self._spent = self.episode_costs.rows.cost_of(self._bits)
        weights, activations = self.walk.per_layer(self._bits).T.tolist()
        return Allocation(self._names, tuple(weights), tuple(activations), *self.origin, self._channels)

    def _conclude(self, evaluation: Evaluation) -> tuple[float, dict[str, Any]]:
        """Charges the evaluation and returns the reward and the last info's outcome."""
        self.evaluations += 1
        bits = self.walk.per_layer(self._bits)
        costs = self.network_costs.of(bits)
        penalty = self.constraint_rule.info()
        feasible = within(costs[self.budgeted], self.limits)
        price = float(self.price(evaluation.accuracy, costs))
        reward = self.constraint_rule.reward(price, costs[self.budgeted] / self.limits)
        return reward, {
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            **{f"cost_{metric}": cost for metric, cost in zip(self.tables, costs.tolist(), strict=True)},
            "feasible": feasible,
            "bits": bits,
            "executed_actions": self._executed.copy(),
            **penalty,
            **(self.regret.info(evaluation, feasible) if self.regret else {}),
        }
