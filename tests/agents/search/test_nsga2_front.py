import pytest

from agents.search.nsga2_front import NSGA2FrontAgent
from agents.search.optuna_agents import NSGA2Config
from quantenv.core.errors import QuantenvError
from tests.agents.searches import make_env


@pytest.mark.parametrize("decisions", ["weights", "joint"])
def test_trials_are_what_was_executed_with_both_objectives(decisions):
    env = make_env(decisions=decisions, budget=1.0)
    agent = NSGA2FrontAgent(env, 0, NSGA2Config(population=8))
    agent.learn(40, lambda metrics: None)
    trials = [trial for trial in agent._study.trials if trial.values]
    assert len(trials) == len(env.infos) == 40
    (budget,) = env.unwrapped.budgets
    for trial, info in zip(trials, env.infos, strict=True):
        error, share = trial.values
        assert error == pytest.approx(1 - info["accuracy"] + 0.1 * info["loss"])
        assert share == pytest.approx(info["cost_size"] / budget.limit)
    assert len({str(info["bits"]) for info in env.infos}) == 40  # nothing is evaluated twice


def test_same_seed_same_search():
    searches = []
    for seed in (0, 0, 1):
        env = make_env(budget=1.0)
        NSGA2FrontAgent(env, seed, NSGA2Config(population=6)).learn(25, lambda metrics: None)
        searches.append(env.bits)
    assert searches[0] == searches[1] != searches[2]


def test_two_costs_are_no_front():
    env = make_env(metric=("size", "latency"), budget=(0.9, 0.9))
    with pytest.raises(QuantenvError, match="about one cost, not 2"):
        NSGA2FrontAgent(env).learn(5, lambda metrics: None)
