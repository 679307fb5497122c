"""Benchmark: what each agent finds, against the best feasible uniform allocation, at equal counted evaluations.

`make bench-agents` runs it with its defaults and writes a JSON file and a Markdown table to `experiments/results/`.
Every search sees the search split only; the table reports the test split, without fine-tuning.
"""

import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

import torch

from agents import make_agent
from experiments.benchmark import write_results
from experiments.command_line import parse_options
from experiments.comparison import best_uniform, costs_of
from experiments.console import announcements
from experiments.options import TrainOptions
from experiments.recorder import EpisodeRecorder
from experiments.search import make_env
from experiments.top_k import TopK
from quantenv.errors import QuantenvError
from quantenv.evaluate import make_evaluator
from quantenv.processes import handed_on, process_context, take
from quantenv.signals import ENDING
from quantenv.tasks import get_task

NAME = "agents_vs_uniform"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Searches with every agent, budget and seed and compares the results with the best feasible uniform allocation."""

    agents: list[str] = field(default_factory=lambda: ["reinforce", "ppo", "ddpg", "random"])
    """Agents, each with its default options."""
    task: str = "digits"
    """Task."""
    metric: str = "size"
    """Budgeted metric."""
    budgets: list[float] = field(default_factory=lambda: [0.4, 0.5])
    """Ratios of the 8-bit cost."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the searches."""
    evaluations: int = 500
    """Evaluations of each search."""
    workers: int = 2
    """Processes that search at the same time, one thread each."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Result:
    """One search's best allocation, or the best feasible uniform one."""

    agent: str
    """Agent, or ``best uniform``."""
    budget: float
    """Ratio of the 8-bit cost."""
    seed: int | None
    """Seed of the search."""
    weight_bits: tuple[int, ...]
    """Bits of each layer's weights."""
    search_accuracy: float
    """On the search split, which chose the allocation."""
    test_accuracy: float
    """On the test split, post-training."""
    test_loss: float
    """Mean cross-entropy on the test split, nats."""
    cost_ratio: float
    """Budgeted cost over the 8-bit cost."""
    test_samples: int
    """Images of the test split."""


def search(options: BenchmarkOptions, agent: str | None, budget: float, seed: int | None) -> Result:
    """Runs one search, or finds the best uniform allocation where `agent` is None."""
    torch.set_num_threads(1)
    task = get_task(options.task)
    evaluator = make_evaluator("ptq", task)
    chosen = TrainOptions(task=options.task, metric=options.metric, budget=budget)
    env, bare = make_env(chosen, task, evaluator)
    if agent is None or seed is None:
        allocation = best_uniform(bare, evaluator)
        if allocation is None:
            raise QuantenvError(f"No uniform allocation meets {options.metric} {budget}; choose a larger budget.")
    else:
        top = TopK(1, bare.budgets)
        recorder = EpisodeRecorder(env, evaluator.reference.samples)
        recorder.listeners = [top]
        make_agent(agent, recorder, seed).learn(options.evaluations, lambda metrics: None)
        if top.best is None:
            raise QuantenvError(f"Agent {agent!r} found no feasible allocation in {options.evaluations} evaluations.")
        allocation = top.best.allocation(bare.layers, task.name, task.scheme)
    (found,), (test,) = evaluator.evaluate([allocation]), evaluator.evaluate([allocation], "test")
    cost = costs_of(bare, allocation)[options.metric] / bare.tables[options.metric].reference
    bits = allocation.weight_bits
    name = agent or "best uniform"
    return Result(name, budget, seed, bits, found.accuracy, test.accuracy, test.loss, cost, test.samples)


def to_markdown(options: BenchmarkOptions, results: Sequence[Result]) -> str:
    """Returns the table: a row for each agent and budget, mean and range over the seeds."""
    lines = [
        f"# Agents against the best uniform allocation on `{options.task}`",
        "",
        f"{options.evaluations} counted evaluations, seeds {', '.join(map(str, options.seeds))}, default options, "
        f"{results[0].test_samples} test images, post-training (no fine-tuning). "
        "Test accuracy: mean (least to greatest).",
        "",
        f"| {options.metric} budget | agent | test accuracy | search accuracy | {options.metric} / 8-bit "
        "| minus uniform, points |",
        "|---|---|---|---|---|---|",
    ]
    for budget in options.budgets:
        (uniform,) = (r for r in results if r.budget == budget and r.agent == "best uniform")
        for agent in ["best uniform", *options.agents]:
            rows = [r for r in results if r.budget == budget and r.agent == agent]
            tests = [r.test_accuracy for r in rows]
            spread = f" ({min(tests):.2%} to {max(tests):.2%})" if len(rows) > 1 else ""
            gain = 100 * (statistics.mean(tests) - uniform.test_accuracy)
            lines.append(
                f"| {budget} | {agent} | {statistics.mean(tests):.2%}{spread} "
                f"| {statistics.mean(r.search_accuracy for r in rows):.2%} "
                f"| {statistics.mean(r.cost_ratio for r in rows):.3f} | {gain:+.2f} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(BenchmarkOptions, NAME, arguments)
    get_task(options.task)  # trained once, before the workers start
    jobs: list[tuple[str | None, float, int | None]] = [(None, budget, None) for budget in options.budgets]
    jobs += [(a, b, s) for b in options.budgets for a in options.agents for s in options.seeds]
    say = announcements()
    results = []
    with ProcessPoolExecutor(options.workers, process_context(), take, (handed_on(), *ENDING)) as pool:
        for result in pool.map(search, [options] * len(jobs), *zip(*jobs, strict=True)):
            results.append(result)
            say.print(
                f"{len(results)}/{len(jobs)} {options.metric} {result.budget} {result.agent} seed {result.seed}: "
                f"test {result.test_accuracy:.2%}"
            )
    identity = make_evaluator("ptq", get_task(options.task)).identity
    rows = {"results": [asdict(result) for result in results]}
    write_results(NAME, arguments, options, identity, rows, to_markdown(options, results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
