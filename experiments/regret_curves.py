"""Benchmark: exact regret of agents on the table tasks after given numbers of counted evaluations.

`make bench-regret` runs it with its defaults. Regret is the accuracy of the best feasible allocation minus that of the
best one found so far, on the search split, in percentage points.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch

from agents import make_agent
from experiments.benchmark import write_results
from experiments.command_line import parse_options
from experiments.console import announcements
from quantenv.evaluate.tables import get_table

NAME = "regret_curves"


@dataclass(frozen=True)
class RegretOptions:
    """Searches the table tasks with every agent, budget and seed and reports how far each is from the optimum."""

    agents: list[str] = field(default_factory=lambda: ["reinforce", "ppo", "ddpg", "random"])
    """Agents, each with its default options."""
    tasks: list[str] = field(default_factory=lambda: ["digits_table", "resnet20_table"])
    """Table tasks."""
    metric: str = "size"
    """Budgeted metric."""
    budgets: list[float] = field(default_factory=lambda: [0.35, 0.45, 0.6])
    """Ratios of the 8-bit cost."""
    seeds: int = 10
    """Searches of each kind, seeded 0, 1, 2, ..."""
    checkpoints: list[int] = field(default_factory=lambda: [200, 1000])
    """Evaluations after which regret is read; the last one ends a search."""
    workers: int = 2
    """Processes that search at the same time, one thread each."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Curve:
    """One search."""

    task: str
    """Table task."""
    budget: float
    """Ratio of the 8-bit cost."""
    agent: str
    """Agent."""
    seed: int
    """Seed."""
    regret: tuple[float, ...]
    """Regret at each checkpoint, percentage points."""
    standard_error: float
    """Binomial standard error of the optimum's accuracy on the search split, percentage points."""


class BestRegret(gymnasium.Wrapper):
    """Keeps the least regret after every evaluation."""

    def __init__(self, env: gymnasium.Env) -> None:
        """Wraps an environment made with ``regret=True``."""
        super().__init__(env)
        self.curve: list[float] = []
        self.standard_error = float("nan")

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a decision."""
        result = self.env.step(action)
        info = result[-1]
        if "regret" in info:
            self.curve.append(min(info["regret"], self.curve[-1] if self.curve else float("inf")))
            self.standard_error = info["regret_standard_error"]
        return result


def search(options: RegretOptions, task: str, budget: float, agent: str, seed: int) -> Curve:
    """Runs one search."""
    torch.set_num_threads(1)
    table = get_table(task)
    env = BestRegret(
        gymnasium.make("quantenv/DigitsTable-v0", task=table, metric=options.metric, budget=budget, regret=True)
    )
    make_agent(agent, env, seed).learn(options.checkpoints[-1], lambda metrics: None)
    regret = tuple(100 * env.curve[checkpoint - 1] for checkpoint in options.checkpoints)
    return Curve(task, budget, agent, seed, regret, 100 * env.standard_error)


def to_markdown(options: RegretOptions, curves: Sequence[Curve]) -> str:
    """Returns the table: median and inter-quartile range over the seeds."""
    heads = " | ".join(f"after {checkpoint:,}" for checkpoint in options.checkpoints)
    lines = [
        "# Regret on the table tasks",
        "",
        "Percentage points of search accuracy below the best feasible allocation: median (quartiles) of "
        f"{options.seeds} seeds. The sampling error is the binomial standard error of the optimum's accuracy.",
        "",
        f"| task | {options.metric} budget | agent | {heads} | sampling error |",
        "|---|---|---|" + "---|" * (len(options.checkpoints) + 1),
    ]
    for task in options.tasks:
        for budget in options.budgets:
            for agent in options.agents:
                rows = [c for c in curves if (c.task, c.budget, c.agent) == (task, budget, agent)]
                cells = []
                for low, median, high in np.percentile([row.regret for row in rows], [25, 50, 75], axis=0).T:
                    cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
                lines.append(f"| {task} | {budget} | {agent} | {' | '.join(cells)} | {rows[0].standard_error:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(RegretOptions, NAME, arguments)
    jobs = [
        (task, budget, agent, seed)
        for task in options.tasks
        for budget in options.budgets
        for agent in options.agents
        for seed in range(options.seeds)
    ]
    say = announcements()
    curves = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for curve in pool.map(search, [options] * len(jobs), *zip(*jobs, strict=True)):
            curves.append(curve)
            say.print(f"{len(curves)}/{len(jobs)} {curve.task} {curve.budget} {curve.agent} seed {curve.seed}")
    measured = {
        "tables": {task: get_table(task).hash for task in options.tasks},
        "curves": [asdict(curve) for curve in curves],
    }
    write_results(NAME, arguments, options, "", measured, to_markdown(options, curves))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
