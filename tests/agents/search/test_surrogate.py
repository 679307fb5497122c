import numpy as np
import pytest
from scipy.stats import spearmanr

from agents import make_agent
from agents.search.annealing import AnnealingAgent
from agents.search.surrogate import SurrogateAgent
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
    SurrogateAgent(env).learn(1, lambda metrics: None)
    assert weight_bits(env) == [best_allocation(env)]  # the proxy is exact here


def test_finds_the_optimum_that_the_proxy_misses_sooner_than_annealing():
    found = [evaluations_to_best(SurrogateAgent, seed, 100) for seed in range(5)]
    assert all(count and count > 1 for count in found)
    assert np.mean(found) < np.mean([evaluations_to_best(AnnealingAgent, seed, 200) for seed in range(5)])


def test_nothing_is_evaluated_twice_before_everything_was_evaluated_once():
    env = make_env(**{**BLIND, "count": 3, "sensitivity": np.ones(3), "budget": 0.5})
    everything = sorted(feasible_allocations(env).tolist())
    SurrogateAgent(env).learn(len(everything) + 5, lambda metrics: None)
    assert sorted(weight_bits(env)[: len(everything)]) == everything
    assert weight_bits(env)[-5:] == [best_allocation(env)] * 5


def test_model_learns_the_ranking_of_allocations_it_has_not_seen():
    env = make_env(**{**BLIND, "budget": 0.6})
    agent = SurrogateAgent(env)
    agent.learn(60, lambda metrics: None)
    every = feasible_allocations(env)
    picks = (every[..., None] == agent._choices.pairs[:, 0]).argmax(axis=-1)
    unseen = picks[[pick.tobytes() not in agent._known for pick in picks]]
    bits = agent._choices.pairs[unseen, 0]
    harm = sum(env.unwrapped.evaluator.harm[layer, chosen - 1, 7] for layer, chosen in enumerate(bits.T))
    scores = agent._draw_scores(unseen, 200)
    assert spearmanr(scores.mean(axis=0), harm).statistic > 0.8


def test_draws_are_widest_where_nothing_was_evaluated():
    env = make_env(count=2, budget=1.0, bits=(2, 4, 8), sensitivity=np.zeros(2))
    agent = SurrogateAgent(env)
    agent._picks = np.array([[2, 2], [2, 1], [1, 2], [1, 1]] * 3)
    agent._scores = np.array([0.0, 0.1, 0.2, 0.3] * 3) + np.random.default_rng(0).normal(0, 0.01, 12)
    scores = agent._draw_scores(np.array([[2, 2], [2, 1], [0, 0]]), 2000)
    known, unknown = (scores[:, 1:] - scores[:, :1]).std(axis=0)  # a draw's level is the same for all
    assert unknown > 5 * known


@pytest.mark.parametrize("name", ["batch", "warmup", "elite", "pool"])
def test_bad_config_is_one_clear_error(name):
    with pytest.raises(QuantenvError, match=f"{name} must be at least 1"):
        make_agent("surrogate", make_env(), config={name: 0})
