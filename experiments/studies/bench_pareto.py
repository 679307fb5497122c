"""Benchmark: how much of the true front's hypervolume one run of `quantenv pareto` finds, over several seeds.

On table tasks, whose true front is known. All agents have the same number of evaluations, one run for each seed.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from experiments.cli.pareto import ParetoOptions, prepare, search
from experiments.options.parsing import parse_options
from experiments.options.signals import GracefulStop
from experiments.studies.harness import write_results
from quantenv.core.errors import QuantenvError

NAME = "bench_pareto"


@dataclass(frozen=True)
class BenchOptions:
    """Finds fronts of accuracy against size with several agents and seeds, and holds them against the true front."""

    tasks: list[str] = field(default_factory=lambda: ["digits_table", "resnet20_table"])
    """Table tasks."""
    agents: list[str] = field(default_factory=lambda: ["nsga2", "reinforce", "ppo", "random"])
    """Who searches; see `quantenv pareto --help`."""
    evaluations: int = 1000
    """Evaluations of each run."""
    seeds: int = 5
    """Runs of each agent, with seeds from 0."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name in ("seeds", "threads"):
            if getattr(self, name) < 1:
                raise QuantenvError(f"--{name} is {getattr(self, name)}; expected a whole number of at least 1.")
        for agent in self.agents:
            ParetoOptions(agent=agent, evaluations=self.evaluations)


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: If a task is no table, or a run was interrupted.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    torch.set_num_threads(options.threads)
    measured = measure(options)
    write_results(NAME, arguments, options, "", measured, to_markdown(measured))
    return 0


def measure(options: BenchOptions) -> dict[str, Any]:
    """Finds the fronts.

    Args:
        options: What to run.

    Returns:
        ``tasks``: by name ``true`` and ``uniform``, the mean accuracies of these fronts (hypervolumes over the range of
        budgets, see `ParetoReport.mean_accuracy`), and ``agents``: by name those of each seed's front.

    Raises:
        QuantenvError: If a task is no table, or a run was interrupted.
    """
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, GracefulStop() as stop:
        for task in options.tasks:
            found: dict[str, Any] = {"true": 0.0, "uniform": 0.0, "agents": {agent: [] for agent in options.agents}}
            for agent in options.agents:
                for seed in range(options.seeds):
                    run = ParetoOptions(task=task, agent=agent, evaluations=options.evaluations, seed=seed, runs=folder)
                    report, code = search(*prepare(run), stop)
                    if code:
                        raise QuantenvError("The benchmark was interrupted; nothing was written.")
                    if report.true is None:
                        raise QuantenvError(f"The true front of task {task!r} is not known: give table tasks.")
                    found["true"], found["uniform"] = report.true.mean_accuracy, report.uniform.mean_accuracy
                    found["agents"][agent].append(report.mean_accuracy)
            measured[task] = found
    return {"evaluations": options.evaluations, "seeds": options.seeds, "tasks": measured}


def to_markdown(measured: Mapping[str, Any]) -> str:
    """Writes what `measure` returned as a table."""
    lines = [
        "# Fronts of accuracy against size",
        "",
        f"{measured['evaluations']:,} evaluations a run, {measured['seeds']} seeds. Hypervolume: the accuracy on the "
        "search split that a front offers on average over budgets from the cheapest allocation to the 8-bit one, "
        "median over seeds (least to greatest); share: of the true front's.",
        "",
        "| task | front | hypervolume | share |",
        "|---|---|---:|---:|",
    ]
    for task, content in measured["tasks"].items():
        true = content["true"]
        rows = {"true": [true], "uniform bits": [content["uniform"]], **content["agents"]}
        for name, values in rows.items():
            median, least, greatest = np.median(values), min(values), max(values)
            spread = f" ({least:.2%} to {greatest:.2%})" if len(values) > 1 else ""
            lines.append(f"| {task} | {name} | {median:.2%}{spread} | {median / true:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
