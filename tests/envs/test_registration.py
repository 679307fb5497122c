import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import quantenv
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.registration import ENVIRONMENTS, register_environments
from tests.envs.synthetic_env import highest, play
from tests.synthetic import AdditiveEvaluator


def check_both(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(env.unwrapped)  # renders in every mode too
        sb3_check_env(env)


def synthetic(name, **kwargs):
    """Makes a registered id over the synthetic evaluator."""
    evaluator = AdditiveEvaluator()
    kwargs = {"evaluator": evaluator, "sensitivity": evaluator.sensitivity, **kwargs}
    return gymnasium.make(name, task=None, **kwargs)


def test_importing_quantenv_imports_no_torch():
    code = (
        "import quantenv, sys, gymnasium; assert 'torch' not in sys.modules; "
        "assert 'quantenv/HAQ-v0' in gymnasium.registry and 'quantenv/Digits-v0' in gymnasium.registry"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_twice_changes_nothing():
    before = {name: gymnasium.spec(name) for name in ENVIRONMENTS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_environments()
    assert {name: gymnasium.spec(name) for name in ENVIRONMENTS} == before
    assert quantenv.__version__


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_both_checkers_pass_on_every_id(name, decisions):
    check_both(synthetic(name, decisions=decisions, budget=0.7, render_mode="rgb_array"))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorised_environments_carry_masks_and_outcomes(mode):
    evaluator = AdditiveEvaluator()
    envs = gymnasium.make_vec(
        "quantenv/Digits-v0",
        num_envs=2,
        vectorization_mode=mode,
        task=None,
        evaluator=evaluator,
        sensitivity=evaluator.sensitivity,
    )
    _, info = envs.reset(seed=0)
    for _ in range(6):
        assert info["action_mask"].shape == (2, 7)
        _, rewards, terminated, _, info = envs.step(np.array([highest(mask) for mask in info["action_mask"]]))
    envs.close()
    assert terminated.all()
    assert (rewards < 0).all()
    assert info["bits"].shape == (2, 6, 2)
    assert info["feasible"].tolist() == [1, 1]


def test_several_budgets_go_through_make():
    env = synthetic("quantenv/Digits-v0", budget={"size": 0.5, "latency": 0.9, "energy": 0.95})
    assert [budget.metric for budget in env.unwrapped.budgets] == ["size", "latency", "energy"]
    assert play(env, highest)[2][-1]["feasible"] == 1
    assert env.get_wrapper_attr("action_masks")().dtype == np.bool_


def test_haq_is_haqs_search():
    env = synthetic("quantenv/HAQ-v0").unwrapped
    assert isinstance(env, QuantizationEnv)
    assert env.constraint == "project"
    assert env.observation_space.shape == (10,)
    assert env.n_decisions == 2 * (len(env.layers) - 2)
    assert [budget.metric for budget in env.budgets] == ["latency"]
    assert play(env, [0] * env.n_decisions)[2][-1]["bits"][[0, -1]].tolist() == [[8, 8], [8, 8]]
