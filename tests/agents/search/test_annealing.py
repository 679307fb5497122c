import numpy as np
import pytest

from agents import make_agent
from agents.search.annealing import AnnealingAgent
from agents.search.ilp import solve
from quantenv.core.errors import QuantenvError
from tests.agents.search.brute_force import (
    BLIND,
    best_allocation,
    evaluations_to_best,
    feasible_allocations,
    weight_bits,
)
from tests.agents.searches import make_env


def test_begins_with_the_answer_of_the_proxy():
    env = make_env(count=5, budget=0.4)
    agent = AnnealingAgent(env)
    agent.learn(1, lambda metrics: None)
    answer = solve(agent._choices.knapsack(agent._harms)).options
    assert weight_bits(env) == [agent._choices.pairs[answer, 0].tolist()]
    assert weight_bits(env) == [best_allocation(env)]  # the proxy is exact here


def test_finds_the_optimum_that_the_proxy_misses():
    blind = [evaluations_to_best(AnnealingAgent, seed, 200) for seed in range(5)]
    assert all(count and count > 1 for count in blind)
    assert np.mean(blind) < 0.5 * len(feasible_allocations(make_env(**BLIND)))


def test_nothing_is_evaluated_twice_before_everything_was_evaluated_once():
    env = make_env(**{**BLIND, "count": 3, "sensitivity": np.ones(3), "budget": 0.5})
    everything = sorted(feasible_allocations(env).tolist())
    AnnealingAgent(env).learn(len(everything) + 5, lambda metrics: None)
    assert sorted(weight_bits(env)[: len(everything)]) == everything
    assert weight_bits(env)[-5:] == [best_allocation(env)] * 5


def test_accepts_by_metropolis_s_rule():
    agent = AnnealingAgent(make_env(), config=AnnealingAgent.config_class(temperature=0.02))
    here, there = np.zeros(4, np.int64), np.ones(4, np.int64)
    moved = 0
    for _ in range(4000):
        agent._at = here, 0.1
        agent._visit(there, 0.11)
        moved += agent._at[0] is there
    assert moved / 4000 == pytest.approx(np.exp(-0.5), abs=0.03)
    agent._visit(there, 0.09)
    assert agent._at == (there, 0.09)


def test_cools_by_evaluation():
    logged = []
    AnnealingAgent(make_env(), config=AnnealingAgent.config_class(temperature=0.5, cooling=0.5, heating=1.0)).learn(
        3, logged.append
    )
    assert [metrics["train/temperature"] for metrics in logged] == [0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"screened": 0}, "screened must be at least 1"),
        ({"cooling": 1.5}, "cooling must be between 0 and 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"heating": 0.5}, "heating must be at least 1"),
    ],
)
def test_bad_config_is_one_clear_error(config, message):
    with pytest.raises(QuantenvError, match=message):
        make_agent("annealing", make_env(), config=config)
