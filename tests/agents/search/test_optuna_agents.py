import sys
import warnings

import numpy as np
import optuna
import pytest

from agents import make_agent
from agents.search.choices import Choices
from agents.search.optuna_agents import CMAESAgent, NSGA2Agent, TPEAgent
from agents.search.optuna_study import Parameters
from agents.search.problem import Problem
from agents.search.random import RandomAgent
from quantenv.core.errors import QuantenvError
from tests.agents.search.brute_force import best_allocation, feasible_allocations, gap, weight_bits
from tests.agents.searches import make_env

AGENTS = (CMAESAgent, NSGA2Agent, TPEAgent)
PROBLEM = {"count": 5, "bits": (2, 4, 6, 8), "budget": 0.5}


@pytest.mark.parametrize("agent_class", AGENTS)
def test_is_nearer_the_optimum_than_random_search(agent_class):
    found, random = ([gap(kind, seed) for seed in range(3)] for kind in (agent_class, RandomAgent))
    assert min(found) > -1e-9
    assert np.mean(found) < np.mean(random) / 2


@pytest.mark.parametrize("agent_class", AGENTS)
def test_nothing_is_evaluated_twice_before_everything_was_evaluated_once(agent_class):
    env = make_env(count=3, bits=(2, 4, 8), budget=0.6)
    everything = sorted(feasible_allocations(env).tolist())
    agent_class(env).learn(len(everything) + 5, lambda metrics: None)
    assert sorted(weight_bits(env)[: len(everything)]) == everything
    assert weight_bits(env)[-5:] == [best_allocation(env)] * 5


@pytest.mark.parametrize("agent_class", AGENTS)
@pytest.mark.parametrize("constraint", ["mask", "project", "reject"])
def test_budgets_are_met_as_proposed_and_trials_are_what_was_executed(agent_class, constraint):
    env = make_env(
        count=3,
        decisions="weights+activations",
        metric=["size", "bops"],
        budget=[0.7, 0.75],
        constraint=constraint,
        pinned={"layer1": 8},
    )
    agent = agent_class(env)
    agent.learn(20, lambda metrics: None)
    assert [info["executed_actions"].tolist() for info in env.infos] == env.taken
    assert all(info["feasible"] for info in env.infos)
    trials = agent._study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    picks = np.array([agent._parameters.pick(trial.params) for trial in trials])
    assert agent._choices.actions(picks).tolist() == env.taken
    assert [trial.value for trial in trials] == [1 - info["accuracy"] + 0.1 * info["loss"] for info in env.infos]


def test_what_was_executed_instead_becomes_a_trial_of_its_own():
    env = make_env(**PROBLEM)
    agent = TPEAgent(env)
    asked = agent.ask(1)
    executed = agent._choices.actions(agent._choices.cheapest()[None])
    assert executed.tolist() != asked.tolist()
    results = agent._evaluate(executed)
    agent.tell(results)
    failed, added = agent._study.trials
    assert failed.state == optuna.trial.TrialState.FAIL
    assert added.state == optuna.trial.TrialState.COMPLETE
    assert set(added.params.values()) == {0}
    assert added.value == results.objective[0]


@pytest.mark.parametrize("agent_class", AGENTS)
def test_a_storage_holds_the_trials_and_changes_nothing(agent_class, tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    envs = [make_env(count=2), make_env(count=2)]
    for env, where in zip(envs, ("", storage), strict=True):
        make_agent(agent_class.name, env, 3, {"storage": where}).learn(4, lambda metrics: None)
    assert envs[0].bits == envs[1].bits
    [study] = optuna.get_all_study_summaries(storage)
    assert study.study_name == f"quantenv-{agent_class.name}-seed3"
    assert study.n_trials == 4
    assert study.user_attrs["bits"]["layer0/weights"] == [2, 3, 4, 5, 6, 7, 8]


def test_a_study_that_exists_is_left_alone(tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    searches = []
    for _ in range(2):
        searches.append(make_env(count=2))
        make_agent("nsga2", searches[-1], 0, {"storage": storage}).learn(1, lambda metrics: None)
    assert searches[0].bits == searches[1].bits
    found = {study.study_name: study.n_trials for study in optuna.get_all_study_summaries(storage)}
    assert found == {"quantenv-nsga2-seed0": 1, "quantenv-nsga2-seed0-2": 1}


@pytest.mark.parametrize("storage", ["sqlite:////no/such/folder/trials.db", "nonsense", "nothing://user:secret@host/x"])
def test_a_storage_that_cannot_be_opened_is_one_clear_error(storage):
    agent = make_agent("tpe", make_env(), config={"storage": storage})
    with pytest.raises(QuantenvError, match="Optuna cannot open the storage") as caught:
        agent.learn(1, lambda metrics: None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("agent", "package"), [("nsga2", "optuna"), ("tpe", "optuna"), ("cma-es", "cmaes")])
def test_missing_extra_is_named(agent, package, monkeypatch):
    monkeypatch.delitem(sys.modules, "agents.search.optuna_study", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(QuantenvError, match=rf"Agent '{agent}' needs {package}.*pip install 'quantenv\[search\]'"):
        make_agent(agent, make_env())


def test_optuna_is_silent_and_left_as_it_was():
    verbosity = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for agent_class in AGENTS:
            agent_class(make_env()).learn(12, lambda metrics: None)
    assert optuna.logging.get_verbosity() == verbosity


def test_parameters_count_the_options_of_what_is_decided():
    env = make_env(count=3, decisions="joint", bits=(2, 4, 8), metric="bops", budget=0.9, pinned={"layer0": 8})
    choices = Choices(Problem(env))
    parameters = Parameters(env, choices)
    names = [f"layer{layer}/{kind}" for layer in (1, 2) for kind in ("weights", "activations")]
    assert list(parameters.distributions) == names
    assert parameters.bits == {name: [2, 4, 8] for name in names}
    pick = parameters.pick(dict(zip(names, (0, 1, 2, 0), strict=True)))
    assert choices.pairs[pick].tolist() == [[2, 4], [8, 2]]
    assert list(parameters.values(pick).values()) == [0, 1, 2, 0]


def test_parameters_go_to_the_nearest_pair_that_the_device_has():
    choices = Choices(Problem(make_env(count=2, decisions="joint", bits=(2, 4, 8), metric="bops", budget=0.9)))
    choices.open = choices.open & (choices.pairs[:, 0] == choices.pairs[:, 1])  # equal bits only
    parameters = Parameters(make_env(count=2, decisions="joint", bits=(2, 4, 8), metric="bops", budget=0.9), choices)
    pick = parameters.pick({"layer0/weights": 1, "layer0/activations": 2, "layer1/weights": 0, "layer1/activations": 1})
    assert choices.pairs[pick].tolist() == [[4, 4], [2, 2]]


@pytest.mark.parametrize(
    ("agent", "option", "value"),
    [
        ("tpe", "batch", 0),
        ("tpe", "startup", 0),
        ("nsga2", "population", 1),
        ("nsga2", "crossover", 2.0),
        ("nsga2", "mutation", -0.1),
        ("cma-es", "population", 3),
    ],
)
def test_bad_config_is_one_clear_error(agent, option, value):
    with pytest.raises(QuantenvError, match=f"{option} must be"):
        make_agent(agent, make_env(), config={option: value})
