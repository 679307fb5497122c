"""The registered ids on the embedded task, with the real evaluator, costs and sensitivities."""

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import quantenv  # noqa: F401 - registers the ids
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.registration import ENVIRONMENTS
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.sensitivity import layer_sensitivity
from quantenv.tasks import get_task
from tests.envs.synthetic_env import highest, play, same


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"constraint": "lagrangian", "observation": "blog", "decisions": "joint"},
        {"constraint": "reject", "observation": "full", "decisions": "weights+activations"},
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_both_checkers_pass(name, kwargs):
    env = gymnasium.make(name, **kwargs)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env)


def test_size_counts_the_codebooks_of_a_k_means_scheme():
    task = get_task("digits")
    evaluator = make_evaluator("ptq", task, "off")
    plain, clustered = (
        QuantizationEnv(dataclasses.replace(task, scheme=scheme), evaluator=evaluator, sensitivity=np.ones(8))
        for scheme in ("linear", "k-means+bias")
    )
    more = clustered.tables["size"].values - plain.tables["size"].values
    assert (more == 4 * 2.0 ** np.arange(1, 9)[:, None]).all()  # a float32 for each of 2**bits centroids of a layer
    assert (clustered.tables["bops"].values == plain.tables["bops"].values).all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_two_environments_are_equal_to_the_bit(name):
    left, right = gymnasium.make(name), gymnasium.make(name)
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.integers(left.action_space.n, size=left.unwrapped.n_decisions).tolist()
        assert same(play(left, actions), play(right, actions))


def test_an_episode_is_priced_by_the_tasks_evaluator():
    env = gymnasium.make("quantenv/Digits-v0", metric="size", budget=0.4)
    _, [*_, reward], [*_, end] = play(env, highest)
    task = get_task("digits")
    evaluator = make_evaluator("ptq", task)
    allocation = Allocation.make(task.layers, *end["bits"].T.tolist())
    [evaluation] = evaluator.evaluate([allocation])
    assert end["accuracy"] == evaluation.accuracy
    assert end["loss"] == evaluation.loss
    assert reward == evaluation.accuracy - evaluator.reference.accuracy
    assert end["feasible"] == 1


def test_sensitivity_is_measured_where_it_is_shown():
    env = gymnasium.make("quantenv/Digits-v0").unwrapped
    observations = play(env, [0] * env.n_decisions)[0]
    column = env.feature_names.index("sensitivity")
    shown = [row[column] for row in observations[:-1]]
    assert np.argsort(shown).tolist() == np.argsort(layer_sensitivity(PTQEvaluator(get_task("digits")))).tolist()
    assert (min(shown), max(shown)) == (0, 1)


def test_several_budgets():
    env = gymnasium.make("quantenv/Digits-v0", budget={"size": 0.5, "bops": 0.6, "latency": 0.9})
    assert play(env, highest)[2][-1]["feasible"] == 1
