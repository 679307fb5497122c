import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from quantenv.core.errors import QuantenvError
from quantenv.envs.multi_objective import MultiObjectiveEnv
from tests.envs.synthetic_env import play
from tests.synthetic import AdditiveEvaluator

ID = "quantenv/MODigitsTable-v0"


def make(**options):
    evaluator = AdditiveEvaluator()
    return MultiObjectiveEnv(None, evaluator=evaluator, sensitivity=evaluator.sensitivity, **options)


def test_rewards_are_accuracy_and_shares_of_cost():
    env = make(objectives=("size", "accuracy", "latency"))
    _, rewards, infos = play(env, [0, 3, 1, 2, 6, 5])
    assert [reward.tolist() for reward in rewards[:-1]] == [[0, 0, 0]] * 5
    info = infos[-1]
    sizes = np.array([layer.params for layer in env.layers])
    share = (sizes * (np.array([0, 3, 1, 2, 6, 5]) + 2) / 8).sum() / sizes.sum()
    latency = info["cost_latency"] / env.tables["latency"].reference
    assert rewards[-1] == pytest.approx([-share, info["accuracy"], -latency], rel=1e-6)
    assert rewards[-1] in env.reward_space
    assert rewards[-1].dtype == env.reward_space.dtype == np.float32
    assert (env.reward_dim, env.reward_space.shape) == (3, (3,))


def test_nothing_is_bounded_unless_asked_for():
    env = make()
    env.reset()
    assert env.action_masks().all()
    assert play(env, [6] * 6)[2][-1]["feasible"] == 1
    assert not make(budget=0.3).reset()[1]["action_mask"].all()


def test_copies_in_lockstep_have_vector_rewards():
    copies = make().vectorize(2)
    copies.reset(seed=0)
    for decision in range(6):
        _, rewards, _, _, _ = copies.step(np.array([0, 6]))
        assert rewards.shape == (2, 2)
        assert rewards.any() == (decision == 5)
    expected = [play(make(), [action] * 6)[1][-1] for action in (0, 6)]
    assert rewards == pytest.approx(np.stack(expected))


def test_it_needs_no_mo_gymnasium():
    code = (
        "import sys, gymnasium, quantenv; sys.modules['mo_gymnasium'] = None; "
        f"env = gymnasium.make('{ID}'); env.reset(); assert env.step(0)[1].shape == (2,)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert gymnasium.spec(ID).disable_env_checker


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ("accuracy", "sise")}, "Did you mean 'size'"),
        ({"objectives": ("size", "size")}, "each of them once"),
        ({"objectives": ()}, "at least one"),
        ({"reward": "weighted"}, "vector"),
        ({"constraint": "lagrangian", "budget": 0.9}, "needs a scalar reward"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(QuantenvError, match=message):
        make(**options)
