import itertools

import numpy as np
import pytest

from agents import make_agent
from agents.search.ilp_agents import ILPTopAgent
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from tests.agents.searches import Recorder, make_env, play_greedily
from tests.synthetic_table import synthetic_table


def by_proxy(env):
    """Returns (proxy harm, weight bits) of all feasible allocations, best first, by trying them all."""
    inner = env.unwrapped
    noise = {bits: 4.0**-bits for bits in inner.bits}
    listed = []
    for bits in itertools.product(inner.bits, repeat=len(inner.layers)):
        rows = np.arange(len(bits)), np.array(bits) - 1, 7
        if inner.tables["size"].values[rows].sum() <= inner.budgets[0].limit:
            listed.append((sum(s * noise[b] for s, b in zip(inner.evaluator.sensitivity, bits, strict=True)), bits))
    return sorted(listed)


def weight_bits(env):
    return [tuple(weight for weight, _ in bits) for bits in env.bits]


def learn(name, env, evaluations, **config):
    agent = make_agent(name, env, 0, config)
    agent.learn(evaluations, lambda metrics: None)
    return agent


@pytest.mark.parametrize("problem", range(4))
def test_ilp_is_the_best_by_the_proxy_and_stays_with_it(problem):
    env = make_env(problem=problem, bits=(2, 3, 4, 6, 8))
    agent = learn("ilp", env, 3)
    assert weight_bits(env) == [by_proxy(env)[0][1]] * 3
    assert [weight for weight, _ in play_greedily(env, agent)] == list(by_proxy(env)[0][1])


@pytest.mark.parametrize("problem", range(4))
def test_top_goes_through_the_proxy_s_order_and_keeps_the_best(problem):
    env = make_env(problem=problem, bits=(2, 3, 4, 6, 8))
    expected = by_proxy(env)
    assert len(expected) > 80
    agent = learn("ilp-top", env, 50, first=4)
    agent.learn(30, lambda metrics: None)
    assert weight_bits(env) == [bits for _, bits in expected[:80]]
    assert agent.best.accuracy == pytest.approx(max(env.rewards) + 0.96)


def test_top_of_all_allocations_finds_the_optimum_and_then_repeats_the_best():
    table = synthetic_table(groups=[[0, 2], [1], [3]])
    env = Recorder(QuantizationEnv(table, budget=0.6, regret=True))
    agent = learn("ilp-top", env, 40, first=4)
    feasible = env.unwrapped.regret.optimum.feasible
    assert feasible < 27 < 40
    assert len({str(bits) for bits in env.bits[:feasible]}) == feasible
    assert min(info["regret"] for info in env.infos) == 0
    assert {tuple(taken) for taken in env.taken[feasible:]} == {agent.best.actions}


@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
@pytest.mark.parametrize("constraint", ["mask", "project", "reject"])
def test_proposals_are_feasible_and_executed_as_they_are(decisions, constraint):
    options = {"decisions": decisions, "constraint": constraint, "bits": (2, 4, 8), "pinned": "first_last"}
    env = make_env(count=5, metric=("bops", "size"), budget=(0.7, 0.7), **options)
    learn("ilp-top", env, 5)
    assert all(info["feasible"] for info in env.infos)
    assert [info["executed_actions"].tolist() for info in env.infos] == env.taken
    assert len({str(taken) for taken in env.taken}) == 5
    single = make_env(count=5, metric=("bops", "size"), budget=(0.7, 0.7), **options)
    learn("ilp", single, 1)
    assert single.taken == env.taken[:1]


def test_kinds_of_sensitivity_by_name():
    table = synthetic_table(samples=50)
    for kind in ("loss", "accuracy"):
        learn("ilp", QuantizationEnv(table, budget=0.6), 1, sensitivity=kind)
    with pytest.raises(QuantenvError, match="Did you mean 'accuracy'"):
        learn("ilp-top", QuantizationEnv(table, budget=0.6), 1, sensitivity="acuracy")


def test_first_is_at_least_one():
    with pytest.raises(QuantenvError, match="first must be between 1"):
        make_agent("ilp-top", make_env(), 0, {"first": 0})


def test_ties_are_proposed_once():
    """Enumerations of different lengths may order equal harms differently: nothing is lost or repeated by that."""
    env = make_env(sensitivity=np.ones(4), bits=(2, 4, 8), budget=0.7)
    agent = learn("ilp-top", env, 60, first=1)
    proposed = {str(bits) for bits in env.bits[:60]}
    assert isinstance(agent, ILPTopAgent)
    assert len(proposed) == min(60, sum(1 for _ in by_proxy(env)))
