import importlib.metadata
import inspect
import subprocess
import sys
from dataclasses import is_dataclass

import gymnasium
import numpy as np
import pytest

import agents
from agents import base
from quantenv.core.errors import QuantenvError
from tests.agents.searches import make_env

BUILT_IN = sorted(base.BUILT_IN)


def _register(monkeypatch, **targets):
    entries = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, base.ENTRY_POINTS) for name, value in targets.items()
    )
    monkeypatch.setattr(base, "entry_points", lambda group: entries.select(group=group))


def test_importing_and_listing_agents_loads_no_torch():
    code = (
        "import sys, agents; agents.agent_names(); agents.describe();"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_agents_are_registered_under_their_own_name(name):
    kind = agents.agent_class(name)
    assert kind.name == name
    assert is_dataclass(kind.config_class)
    assert agents.describe()[name] == kind.__doc__.splitlines()[0]
    assert name in agents.agent_names()


def test_every_option_is_explained():
    for name in BUILT_IN:
        kind = agents.agent_class(name)
        bases = kind.config_class.__mro__[:-1]  # options are inherited, too; the last one is object
        source = "".join(map(inspect.getsource, bases))
        for field in kind.config_class.__dataclass_fields__.values():
            line = f"    {field.name}: {field.type.__name__} = "
            assert line in source
            assert source.split(line)[1].splitlines()[1].strip().startswith('"""')


def test_unknown_agent_names_the_nearest():
    with pytest.raises(QuantenvError, match=r"Unknown agent 'reinforec'\. Did you mean 'reinforce'"):
        agents.agent_class("reinforec")


def test_entry_points_add_agents(monkeypatch):
    _register(monkeypatch, mine="agents.search.random:RandomAgent")
    assert agents.agent_names() == sorted([*BUILT_IN, "mine"])
    assert agents.describe()["mine"].startswith("Uniform choice")
    assert type(agents.make_agent("mine", make_env())).__name__ == "RandomAgent"


def test_broken_entry_point_fails_only_when_asked_for(monkeypatch):
    _register(monkeypatch, broken="no_such_module_here:Agent", hollow="agents.search.random:NoSuchClass")
    assert {"broken", "hollow"} < set(agents.agent_names())
    descriptions = agents.describe()
    assert descriptions["broken"].startswith("(")
    assert "no class NoSuchClass" in descriptions["hollow"]
    agents.make_agent("random", make_env())
    for name, target in (("broken", "no_such_module_here:Agent"), ("hollow", "agents.search.random:NoSuchClass")):
        with pytest.raises(QuantenvError, match=f"{name!r} is registered as {target!r} but cannot be imported"):
            agents.agent_class(name)


def test_config_by_mapping():
    agent = agents.make_agent("reinforce", make_env(), config={"hidden": 8, "learning_rate": 1})
    assert agent.config == agents.agent_class("reinforce").config_class(hidden=8, learning_rate=1.0)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ppo", {"hiden": 3}, "Unknown option of agent 'ppo' 'hiden'. Did you mean 'hidden'"),
        ("ppo", {"hidden": "many"}, "Option 'hidden' of agent 'ppo' is 'many'; expected a whole number"),
        ("ddpg", {"tau": 1.5}, "DDPGConfig: tau must be between 0 and 1, not 1.5"),
        ("ddpg", {"steps_per_update": 0}, "steps_per_update must be at least 1, not 0"),
        (
            "reinforce",
            {"learning_rate": float("nan")},
            "learning_rate.* is nan; expected a number that is neither",
        ),
        ("reinforce", 3, "configured by a ReinforceConfig or a mapping of its fields, not by a int"),
        ("ppo", {"episodes_per_update": 5, "episodes_per_minibatch": 2}, "must divide"),
    ],
)
def test_bad_config_is_one_clear_error(name, config, message):
    with pytest.raises(QuantenvError, match=message):
        agents.make_agent(name, make_env(), config=config)


@pytest.mark.parametrize("name", ["reinforce", "ddpg", "ppo"])
def test_another_environment_is_refused(name):
    with pytest.raises(QuantenvError, match="QuantizationEnv"):
        agents.make_agent(name, gymnasium.make("Pendulum-v1"))


SEEDS = (-1, 2**32, 2**64, 1.5, True, None, "1", float("nan"), np.int64(-1), np.float32(2))


@pytest.mark.parametrize("name", BUILT_IN)
def test_seeds_that_not_every_library_takes_are_refused_by_every_agent(name):
    kind, env = agents.agent_class(name), make_env()
    for seed in SEEDS:
        for make in (lambda seed: agents.make_agent(name, env, seed), lambda seed: kind(env, seed=seed)):
            with pytest.raises(QuantenvError, match=r"seed is .*; expected a whole number"):
                make(seed)
    if name == "differentiable":  # needs a task: see its own tests
        return
    for seed in (0, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)):
        kind(env, seed=seed)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "differentiable"])
def test_evaluations_to_learn_from_are_a_whole_number(name):
    env = make_env()
    agent = agents.make_agent(name, env, config={"cloning_steps": 1} if name.endswith("-warm") else {})
    for evaluations in (-1, 1.5, 2.0, True, None, "3", float("inf"), np.float64(3), 10**30):
        with pytest.raises(QuantenvError, match="number of evaluations to learn from is"):
            agent.learn(evaluations, lambda metrics: None)
    agent.learn(0, lambda metrics: None)
    assert not env.bits
    agent.learn(np.int64(3), lambda metrics: None)
    assert len(env.bits) in (1, 2, 3)  # uniform has no more to propose


@pytest.mark.parametrize(
    "name", [name for name in BUILT_IN if agents.agent_class(name).config_class.__dataclass_fields__]
)
@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), True, [1], 10**400])
def test_no_option_of_any_agent_takes_another_type(name, value):
    kind = agents.agent_class(name).config_class
    for field in kind.__dataclass_fields__.values():
        if (field.type is bool and value is True) or (field.type is str and value == "x"):
            continue
        with pytest.raises(QuantenvError, match=field.name):
            base.in_force({field.name: value}, kind)
        with pytest.raises(QuantenvError, match=field.name):
            base.in_force(kind(**{field.name: value}), kind)
