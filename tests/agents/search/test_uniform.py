import numpy as np
import pytest

from agents.search.uniform import UniformAgent
from experiments.runs.comparison import best_uniform, uniform_allocations
from tests.agents.searches import make_env, play_greedily


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.7},
        {"budget": 0.8, "constraint": "reject", "pinned": {"layer1": 8}},
        {"budget": 0.5, "tied": [["layer0", "layer3"]], "constraint": "project"},
        {"budget": 0.4, "metric": "bops", "decisions": "joint", "bits": (2, 4, 8)},
        {"budget": 0.4, "metric": "bops", "decisions": "weights+activations", "bits": (2, 4, 8)},
        {"budget": 1.0, "metric": "latency", "device": "int8_cpu", "bits": (4, 8), "constraint": "lagrangian"},
        {"budget": 1.0, "device": "bitfusion", "decisions": "joint", "bits": (2, 4, 8)},
    ],
)
def test_tries_every_feasible_uniform_allocation_once_in_descending_bits(options):
    env = make_env(**options)
    expected = uniform_allocations(env.unwrapped)
    agent = UniformAgent(env)
    agent.learn(len(expected) + 2, lambda metrics: None)
    tried = [tuple(map(tuple, bits)) for bits in env.bits]
    assert set(tried) == {allocation.bits for allocation in expected}
    assert len(set(tried[: len(expected)])) == len(expected)
    totals = [np.sum(bits) for bits in tried[: len(expected)]]
    assert totals == sorted(totals, reverse=True)
    best = best_uniform(env.unwrapped, env.unwrapped.evaluator)
    assert tried[-2:] == [best.bits] * 2
    assert tuple(map(tuple, play_greedily(env, agent))) == best.bits
