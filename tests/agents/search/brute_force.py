"""Every feasible allocation of a small environment, and what it is worth: what searches are checked against."""

import functools
import itertools
from typing import Any

import numpy as np

from quantenv.core.allocation import Allocation
from tests.agents.searches import Recorder, make_env

#: Searches that the proxy alone does not solve: it is told that all layers are equally sensitive.
BLIND = {"count": 5, "bits": (2, 4, 6, 8), "budget": 0.4, "sensitivity": np.ones(5)}


def feasible_allocations(env: Recorder) -> np.ndarray:
    """Lists weight bits, int64 (N, L), by trying them all."""
    inner: Any = env.unwrapped
    every = np.array(list(itertools.product(inner.bits, repeat=len(inner.layers))))
    spent = sum(inner.tables["size"].values[layer, bits - 1, 7] for layer, bits in enumerate(every.T))
    return every[spent <= inner.budgets[0].limit]


def best_allocation(env: Recorder) -> list[int]:
    """Finds the feasible weight bits of least harm, which determines accuracy and loss."""
    every = feasible_allocations(env)
    harm = sum(env.unwrapped.evaluator.harm[layer, bits - 1, 7] for layer, bits in enumerate(every.T))
    return every[np.argmin(harm)].tolist()


def weight_bits(env: Recorder) -> list[list[int]]:
    """Lists the weight bits of the episodes that were recorded."""
    return np.array(env.bits)[:, :, 0].tolist()


@functools.cache
def evaluations_to_best(agent_class: Any, seed: int, evaluations: int) -> int | None:
    """Counts evaluations until an agent evaluates the best allocation of `BLIND`; None if it does not."""
    env = make_env(**BLIND)
    agent_class(env, seed).learn(evaluations, lambda metrics: None)
    best = best_allocation(env)
    found = weight_bits(env)
    return found.index(best) + 1 if best in found else None


#: A search whose space is too large for luck: 4,096 allocations, few of them feasible and good.
LARGE = {"count": 6, "bits": (2, 4, 6, 8), "budget": 0.4}


def gap(agent_class: Any, seed: int, evaluations: int = 100) -> float:
    """Loss of the best allocation that an agent evaluates beyond that of the best there is, on `LARGE`."""
    env = make_env(**LARGE)
    agent_class(env, seed).learn(evaluations, lambda metrics: None)
    assert all(info["feasible"] for info in env.infos)
    inner: Any = env.unwrapped
    optimum = Allocation.make(inner.layers, best_allocation(env))
    [best] = inner.evaluator.evaluate([optimum])
    return min(info["loss"] for info in env.infos) - best.loss
