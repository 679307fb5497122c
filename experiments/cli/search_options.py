"""Options of `pareto` and `tune`; importing them loads no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.base import BUILT_IN, agent_names
from experiments.leaderboard.suite import FIRST_TUNING_SEED, Job
from experiments.options.task_source import SourceOptions
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.typed import MOST_SEED, MOST_THREADS, MOST_WORKERS, Scalar, check_fields, require_within
from quantenv.envs.decisions import check_bits

#: Built-in agents that learn a policy of what they observe; those of third parties are taken to.
POLICIES = ("a2c", "ddpg", "ppo", "random", "recurrent-ppo", "reinforce", "sac", "td3", "trpo")

#: The built-in optimiser that searches with two objectives.
NSGA2 = "nsga2"


@dataclass(frozen=True)
class ParetoOptions(SourceOptions):
    """Finds allocations from the cheapest to the dearest, each as accurate as can be at its cost, in one run.

    Prints the front with its hypervolume: the accuracy that it offers on average over all budgets between its ends.
    """

    task: str = "digits_table"
    """Network, weights and data to quantize; `quantenv tasks` lists them. On a table task the true front is known."""
    agent: str = "reinforce"
    """Who searches: a learner whose policy sees the budget, such as reinforce or ppo; or nsga2, with two objectives
    (quantenv[search])."""
    metric: str = "size"
    """The cost that accuracy is traded against: size, bops, latency, energy or memory."""
    budget: float | str = 1.0
    """Where the front ends: a ratio of the cost at 8 bits, in (0, 1], or an absolute limit such as 18KiB."""
    levels: int = 16
    """Budgets that a policy is trained and played at, evenly spaced."""
    evaluations: int = 1000
    """Allocations that may be evaluated. The first one has the fewest bits everywhere, so that every front starts
    there; a policy's last ones are its greedy episode at each level."""
    seed: int = 0
    """Fixes everything random in the search: same seed, same front."""
    device: str = "generic"
    """Whose costs count: a name from `quantenv devices`, or the path of a YAML file."""
    decisions: str = "weights"
    """What is decided: weights (activations stay at 8 bits), weights+activations or joint."""
    bits: list[int] | None = None
    """Bit-widths to choose from, 1-8, as [2,4,8]; by default 2 to 8, or those of a table task."""
    evaluator: str = "ptq"
    """How an allocation's accuracy is measured: ptq, ptq-float, ptq-integer or finetune."""
    store: str | None = None
    """Where evaluations are kept; see `quantenv train --help`."""
    agent_options: dict[str, Scalar] = field(default_factory=dict)
    """Options of the agent by name, as for `quantenv train`."""
    threads: int = 1
    """Threads of torch."""
    runs: str = "runs"
    """Folder in which fronts are kept, as <task>/pareto/<agent>-<seed>-<time>."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "levels")
        if self.bits is not None:
            check_bits(self.bits)
        require_within(self, 1, MOST_THREADS, "threads")
        require_within(self, 0, MOST_SEED, "seed")
        if self.agent not in (NSGA2, *POLICIES) and self.agent in BUILT_IN:
            raise QuantenvError(
                f"Agent {self.agent!r} searches under one budget, so one run of it gives no front: use {NSGA2}, or a "
                f"learner: {', '.join(POLICIES)}."
            )
        if self.agent not in agent_names():
            raise unknown_name("agent", self.agent, (NSGA2, *POLICIES))
        least = 2 if self.agent == NSGA2 else self.levels + 2
        if self.evaluations < least:
            raise QuantenvError(
                f"--evaluations is {self.evaluations}: agent {self.agent!r} needs at least {least} (the first corner, "
                "a search, and one for each level of a policy)."
            )


@dataclass(frozen=True)
class TuneOptions:
    """Looks for an agent's options on a task with Optuna's TPE, and writes the best found as YAML.

    A trial's score is the mean, over budgets and tuning seeds, of the accuracy lost after all evaluations: regret on a
    table task, else the error of the best feasible allocation. The same command continues a tuning that was
    interrupted, or one with fewer trials.
    """

    agent: str = "reinforce"
    """Whose options; `quantenv agents` lists them."""
    task: str = "resnet20_table"
    """Task, or path of a table."""
    metric: str = "size"
    """Budgeted metric: size, bops, latency, energy or memory."""
    budgets: list[float] = field(default_factory=lambda: [0.35, 0.45, 0.6])
    """Ratios of the cost at 8 bits, in (0, 1]."""
    seeds: int = 3
    """Searches with each budget, seeded 1000, 1001, ...: a benchmark's seeds stay below."""
    evaluations: int = 500
    """Counted evaluations of each search."""
    trials: int = 40
    """Choices of options to try in all, the options in force among them."""
    space: str | None = None
    """YAML file of spaces by agent; by default the shipped one, experiments/configs/spaces.yaml."""
    agent_options: dict[str, Scalar] = field(default_factory=dict)
    """Options of the agent that are not varied, as {hidden: 128}."""
    device: str = "generic"
    """Whose costs count: a name from `quantenv devices`, or the path of a YAML file."""
    decisions: str = "weights"
    """What the agent decides: weights, weights+activations or joint."""
    constraint: str = "mask"
    """How the budget is held: mask, project, reject or lagrangian."""
    seed: int = 0
    """Of Optuna's draws."""
    workers: int = 2
    """Searches that run at the same time, each in a process of its own with one thread. Results do not depend on it."""
    output: str | None = None
    """Folder of the tuning; by default runs/tune/<task>/<agent>."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "seeds", "evaluations", "trials")
        require_within(self, 1, MOST_WORKERS, "workers")
        require_within(self, 0, MOST_SEED, "seed")
        if not self.budgets:
            raise QuantenvError("--budgets is empty; expected at least one ratio in (0, 1].")

    def jobs(self, agent_options: Mapping[str, Scalar]) -> list[Job]:
        """Lists the searches that judge a choice of the agent's options."""
        return [
            Job(
                task=self.task,
                metric=self.metric,
                budget=budget,
                agent=self.agent,
                seed=FIRST_TUNING_SEED + index,
                evaluations=self.evaluations,
                device=self.device,
                decisions=self.decisions,
                constraint=self.constraint,
                agent_options=dict(agent_options),
            )
            for budget in self.budgets
            for index in range(self.seeds)
        ]
