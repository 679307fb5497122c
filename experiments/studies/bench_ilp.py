"""Benchmark: seconds to the exact optimum of the additive proxy, and to its next best solutions.

Prints JSON: median, least and most over problems. `network` problems are shaped like networks: harms that fall with the
bits, costs that grow with them (size, bit operations, latency). `unstructured` ones are uniform random numbers without
any relation of harm and cost, which are harder than what networks give.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agents.search.ilp import solve
from agents.search.knapsack import Knapsack
from agents.search.next_best import next_best
from experiments.options.parsing import parse_options
from experiments.runs.provenance import environment

NAME = "bench_ilp"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measures the exact solver: layers x 49 pairs of bits x 3 budgets."""

    layers: int = 50
    """Layers of each problem."""
    problems: int = 10
    """Problems of each kind."""
    top: int = 100
    """Best solutions to enumerate of each network problem."""


def network_problem(seed: int = 0, layers: int = 50) -> Knapsack:
    """Draws a problem shaped like a network: 49 pairs of 2 to 8 bits; size, bit operations and latency bounded."""
    rng = np.random.default_rng(seed)
    weight, activation = (bits.ravel() for bits in np.meshgrid(np.arange(2, 9), np.arange(2, 9), indexing="ij"))
    of_weights, of_activations = rng.lognormal(0, 1.5, (2, layers, 1))
    params, inputs, macs = np.exp(rng.normal([[10], [9], [13]], 1.2, (3, layers)))[..., None]
    bound_by_memory = params * weight + inputs * activation
    costs = np.stack(
        [params * weight, macs * weight * activation, bound_by_memory + macs * np.maximum(weight, activation) / 10]
    )
    limits = costs[:, :, -1].sum(axis=1) * [0.5, 0.4, 0.55]
    return Knapsack(of_weights * 4.0**-weight + of_activations * 4.0**-activation, costs, limits)


def unstructured_problem(seed: int, layers: int = 50) -> Knapsack:
    """Draws harms and costs of 49 options uniformly; the three budgets are 0.3 for each layer."""
    rng = np.random.default_rng(seed)
    return Knapsack(rng.random((layers, 49)), rng.random((3, layers, 49)), np.full(3, 0.3 * layers))


def measure(work: Callable[[Knapsack], object], problems: Sequence[Knapsack]) -> dict[str, float]:
    """Returns the median, least and most seconds of some work on each problem."""
    seconds = []
    for problem in problems:
        start = time.perf_counter()
        work(problem)
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(BenchmarkOptions, NAME, arguments)
    networks = [network_problem(seed, options.layers) for seed in range(options.problems)]
    unstructured = [unstructured_problem(seed, options.layers) for seed in range(options.problems)]
    content = {
        "command": f"python -m experiments.studies.{NAME} {' '.join(arguments)}".strip(),
        "options": asdict(options),
        "environment": environment("", 1),
        "seconds": {
            "optimum, network": measure(solve, networks),
            "optimum, unstructured": measure(solve, unstructured),
            f"{options.top} best, network": measure(lambda problem: next_best(problem, options.top), networks),
        },
    }
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
