"""Benchmark part: steps per second of a table environment, one alone and many vectorised, in one process.

Actions are random and drawn beforehand; a step is one decision of one environment, with resets and the evaluation at
the end of each episode within.
"""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from experiments.studies.bench_options import BenchOptions
from experiments.studies.harness import Claim, show, spread
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.vector import VectorTableEnv

ID = "quantenv/DigitsTable-v0"
SINGLE, WRAPPED, VECTORISED = "single", "single, with the wrappers of gymnasium.make", "vectorised"
#: Decisions per second.
TARGETS = {SINGLE: 50_000, VECTORISED: 1_000_000}


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


def measure(options: BenchOptions) -> dict[str, Any]:
    """Plays random episodes.

    Args:
        options: `num_envs`, `rounds`, `seconds` and `seed` count.

    Returns:
        The spreads of decisions per second, by kind of environment.
    """
    made = gymnasium.make(ID)  # as users make it, with Gymnasium's wrappers
    bare: Any = made.unwrapped
    # Every step is a decision of every copy: Gymnasium's default would spend every ninth step on beginning episodes.
    envs: Any = gymnasium.make_vec(
        ID, num_envs=options.num_envs, vectorization_mode="vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP
    )
    actions = np.random.default_rng(options.seed).integers(bare.action_space.n, size=(1000, options.num_envs))
    plain = actions.ravel()[:100_000].tolist()
    rounds: dict[str, list[float]] = {SINGLE: [], WRAPPED: [], VECTORISED: []}
    for _ in range(options.rounds):
        rounds[SINGLE].append(measure_single(bare, plain, options.seconds))
        rounds[WRAPPED].append(measure_single(made, plain, options.seconds))  # type: ignore[arg-type]
        rounds[VECTORISED].append(measure_vector(envs, actions, options.seconds))
    return {
        "id": ID,
        "num_envs": options.num_envs,
        "rounds": options.rounds,
        "steps_per_second": {name: spread(values) for name, values in rounds.items()},
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says whether the environments are fast enough."""
    rows = []
    for name, target in TARGETS.items():
        figures = measured["steps_per_second"][name]
        many = f", {measured['num_envs']:,} copies" if name == VECTORISED else ""
        claim = f"decisions per second of {measured['id']}, {name}{many}"
        rows.append(Claim(claim, f">= {target:,}", show(figures, ",.0f"), figures["median"] >= target))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table."""
    lines = [
        f"{measured['id']}, {measured['num_envs']:,} copies where vectorised; medians (least to greatest) of "
        f"{measured['rounds']} interleaved rounds.",
        "",
        "| environment | decisions per second |",
        "|---|---|",
    ]
    lines += [f"| {name} | {show(figures, ',.0f')} |" for name, figures in measured["steps_per_second"].items()]
    return "\n".join(lines) + "\n"
