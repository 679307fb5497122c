"""What a benchmark runs: its options, and the searches they stand for."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agents.base import agent_names, make_config
from experiments.options.agents import resolved_options
from experiments.options.runs import TrainOptions
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.typed import MOST_WORKERS, Scalar, check_fields, require_within, short

POOLS = ("processes", "ray")

#: Seeds from here on are for tuning agents (`quantenv tune`), and no benchmark uses them.
FIRST_TUNING_SEED = 1000


@dataclass(frozen=True)
class BenchmarkOptions:
    """Searches with every agent, task, budget and seed, and ranks the agents.

    Everything is written to one folder. The same command continues a benchmark that was interrupted, and runs again
    only what is missing or was made by other code, options or versions. What is not finite in the files is null.
    """

    name: str = "default"
    """Name of the suite."""
    agents: list[str] | None = None
    """Agents by name; by default every registered one. Those that cannot search a task are listed as such."""
    tasks: list[str] = field(default_factory=lambda: ["digits_table", "resnet20_table"])
    """Tasks by name, or paths of tables. Exact regret is known on table tasks only."""
    metric: str = "size"
    """Budgeted metric: size, bops, latency, energy or memory."""
    budgets: list[float] = field(default_factory=lambda: [0.35, 0.45, 0.6])
    """Ratios of the cost at 8 bits, in (0, 1]."""
    seeds: int = 10
    """Searches of each kind, seeded 0, 1, 2, ..."""
    evaluations: int = 1000
    """Counted evaluations of each search."""
    checkpoints: list[int] | None = None
    """Evaluations after which the leaderboard reads the best found so far, ascending; the last one ranks. By default a
    fifth of the evaluations, and all."""
    compare_with: str = "random"
    """Agent over which the probability of improvement is estimated, if it is among the agents."""
    device: str = "generic"
    """Whose costs count: a name from `quantenv devices`, or the path of a YAML file."""
    decisions: str = "weights"
    """What agents decide: weights, weights+activations or joint."""
    constraint: str = "mask"
    """How the budget is held: mask, project, reject or lagrangian."""
    agent_options: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    """Options by agent, as {ppo: {learning_rate: 0.001}}, over those of experiments/configs/agents/<agent>.yaml."""
    workers: int = 2
    """Searches that run at the same time, each in a process of its own with one thread. Results do not depend on it."""
    pool: str = "processes"
    """Who runs the searches: processes (of this machine) or ray (a cluster, by RAY_ADDRESS, or this machine)."""
    resamples: int = 2000
    """Draws of the bootstrap behind every interval."""
    output: str | None = None
    """Folder of the benchmark; by default runs/benchmark/<name>."""
    quick: bool = False
    """Run the quick suite, experiments/configs/benchmark_quick.yaml; options given besides it still count."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "seeds", "evaluations", "resamples")
        require_within(self, 1, MOST_WORKERS, "workers")
        for name in ("agents", "tasks", "budgets", "checkpoints"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise QuantenvError(f"--{name} is {short(values)}; expected at least one, each once.")
        read_at = self.read_at
        if sorted(read_at) != read_at or read_at[0] < 1:
            raise QuantenvError(f"--checkpoints is {short(read_at)}; expected ascending numbers of evaluations.")
        if read_at[-1] > self.evaluations:
            raise QuantenvError(
                f"--checkpoints ends with {read_at[-1]}, but a search ends after {self.evaluations} evaluations: raise "
                "--evaluations, or leave that checkpoint out."
            )
        if self.seeds > FIRST_TUNING_SEED:
            raise QuantenvError(
                f"--seeds is {self.seeds}; expected at most {FIRST_TUNING_SEED}: agents are tuned on the seeds "
                "from there on."
            )
        if self.pool not in POOLS:
            raise unknown_name("pool", self.pool, POOLS)

    @property
    def read_at(self) -> list[int]:
        """The checkpoints, those by default included."""
        if self.checkpoints is not None:
            return self.checkpoints
        return sorted({max(1, self.evaluations // 5), self.evaluations})

    @property
    def agent_list(self) -> list[str]:
        """The agents that are asked for, by name.

        Raises:
            QuantenvError: If one is unknown, or options are given for another or are none of its own.
        """
        known = agent_names()
        chosen = known if self.agents is None else self.agents
        for name in chosen:
            if name not in known:
                raise unknown_name("agent", name, known)
        for name in self.agent_options:
            if name not in chosen:
                raise unknown_name("agent with options in --agent_options:", name, chosen)
            make_config(name, self.agent_options[name])
        return list(chosen)


@dataclass(frozen=True)
class Job:
    """One search."""

    task: str
    """Task."""
    metric: str
    """Budgeted metric."""
    budget: float
    """Ratio of the cost at 8 bits."""
    agent: str
    """Agent."""
    seed: int
    """Seed."""
    evaluations: int
    """Counted evaluations."""
    device: str = "generic"
    """Device."""
    decisions: str = "weights"
    """What is decided."""
    constraint: str = "mask"
    """How the budget is held."""
    agent_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the agent that differ from its defaults."""

    @property
    def title(self) -> str:
        """How progress and differences name it."""
        return f"{self.task} {self.metric} {self.budget:g} {self.agent} seed {self.seed}"

    @property
    def train_options(self) -> TrainOptions:
        """The same search as options of `quantenv train`."""
        return TrainOptions(**asdict(self))


def jobs(options: BenchmarkOptions) -> list[Job]:
    """Lists a benchmark's searches in the order in which they are run: what is interrupted has seeds of everything.

    Raises:
        QuantenvError: If an agent is unknown.
    """
    agents = options.agent_list  # once, as are their options: whatever is installed is searched for agents each time
    of_agents = {
        (task, agent): resolved_options(agent, task, options.agent_options.get(agent, {}))
        for task in options.tasks
        for agent in agents
    }
    return [
        Job(
            task=task,
            metric=options.metric,
            budget=budget,
            agent=agent,
            seed=seed,
            evaluations=options.evaluations,
            device=options.device,
            decisions=options.decisions,
            constraint=options.constraint,
            agent_options=of_agents[task, agent],
        )
        for seed in range(options.seeds)
        for task in options.tasks
        for budget in options.budgets
        for agent in agents
    ]
