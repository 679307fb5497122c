"""Benchmark: steps per second of a table environment, one alone and many vectorised, in one process.

Prints JSON: medians of interleaved rounds, with their range. Actions are random and drawn beforehand; a step is one
decision of one environment, with resets and the evaluation at the end of each episode within.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from experiments.command_line import parse_options
from experiments.provenance import environment
from quantenv.env.environment import QuantizationEnv
from quantenv.env.vector import VectorTableEnv

NAME = "bench_table_env"


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measures steps per second of a table environment."""

    id: str = "quantenv/DigitsTable-v0"
    """Environment id over a table."""
    num_envs: int = 1024
    """Copies in the vectorised environment."""
    rounds: int = 7
    """Rounds, of which the median counts."""
    seconds: float = 0.5
    """Least duration of each measurement."""


def measure_single(env: QuantizationEnv, actions: Sequence[int], seconds: float) -> float:
    """Plays whole episodes of one environment for a while; returns steps per second."""
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(50):
            env.reset()
            terminated = False
            while not terminated:
                _, _, terminated, _, _ = env.step(actions[steps % len(actions)])
                steps += 1
    return steps / elapsed


def measure_vector(envs: VectorTableEnv, actions: np.ndarray, seconds: float) -> float:
    """Steps a vectorised environment for a while; `actions` is int (S, N). Returns decisions per second."""
    envs.reset()
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            envs.step(actions[steps % len(actions)])
            steps += 1
    return steps * envs.num_envs / elapsed


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.
    """
    options = parse_options(BenchmarkOptions, NAME, arguments)
    made = gymnasium.make(options.id)  # as users make it, with Gymnasium's wrappers
    bare: Any = made.unwrapped
    envs: Any = gymnasium.make_vec(options.id, num_envs=options.num_envs, vectorization_mode="vector_entry_point")
    rng = np.random.default_rng(0)
    actions = rng.integers(bare.action_space.n, size=(1000, options.num_envs))
    rounds: dict[str, list[float]] = {"single": [], "single, with the wrappers of gymnasium.make": [], "vectorised": []}
    for _ in range(options.rounds):
        plain = actions.ravel()[:100_000].tolist()
        for name, value in zip(
            rounds,
            (
                measure_single(bare, plain, options.seconds),
                measure_single(made, plain, options.seconds),  # type: ignore[arg-type]
                measure_vector(envs, actions, options.seconds),
            ),
            strict=True,
        ):
            rounds[name].append(value)
    content = {
        "command": f"python -m experiments.{NAME} {' '.join(arguments)}".strip(),
        "options": asdict(options),
        "environment": environment(bare.evaluator.identity, 1),
        "steps_per_second": {
            name: {"median": round(statistics.median(values)), "least": round(min(values)), "most": round(max(values))}
            for name, values in rounds.items()
        },
    }
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
