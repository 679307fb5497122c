import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from agents import make_agent
from agents.search.differentiable import DifferentiableAgent, DifferentiableConfig
from agents.search.supernet import mixed_network
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.calibration import REESTIMATED_ON
from quantenv.tasks import Split, Task
from tests.agents.searches import Recorder, make_env, play_greedily
from tests.networks import branched
from tests.synthetic_table import synthetic_table


def split(count, seed):
    inputs = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Split(inputs, branched()(inputs).detach().argmax(dim=1))  # the float network is always right


@pytest.fixture(scope="module")
def task():
    splits = {"train": split(256, 0), "search": split(96, 1), "test": split(16, 2)}
    return Task("branched", branched(), {**splits, "calibration": splits["train"]})


def env_of(task, **options):
    options = {"bits": (2, 4, 8), "budget": 0.5, "evaluator": "ptq-float", **options}
    return Recorder(QuantizationEnv(task, **options))


def learn(env, evaluations, seed=0, **config):
    logged = []
    player = make_agent("differentiable", env, seed, {"batch_size": 16, "block": 5, **config})
    player.learn(evaluations, logged.append)
    return player, logged


@pytest.mark.parametrize("scheme", ["linear", "linear+bias", "linear+bias+batch-norm"])
def test_network_of_shares_of_one_is_the_quantized_network(task, scheme):
    task = dataclasses.replace(task, scheme=scheme)
    calibration = calibrate_task(task)
    bits = [2, 8, 4, 4, 2, 8]
    count = len(task.layers)
    network, layers = mixed_network(calibration, [(2, 4, 8)] * count, [(8,)] * count)
    for layer, chosen in zip(layers, bits, strict=True):
        layer.weight_share = torch.tensor([float(option == chosen) for option in (2, 4, 8)])
    quantized = QuantizedNetwork(calibration)
    quantized.select(Allocation.make(task.layers, bits))
    inputs = task.splits["calibration"].inputs[:REESTIMATED_ON]  # whose statistics batch norms have
    with torch.no_grad():
        assert torch.allclose(network(inputs), quantized(inputs), atol=1e-4)


def test_inputs_are_weighed_too(task):
    calibration = calibrate_task(task)
    count = len(task.layers)
    network, layers = mixed_network(calibration, [(8,)] * count, [(2, 8)] * count)
    inputs = task.splits["search"].inputs[:8]
    outputs = []
    for coarse in (0.0, 0.5, 1.0):
        for layer in layers:
            layer.input_share = torch.tensor([coarse, 1 - coarse])
        with torch.no_grad():
            outputs.append(network(inputs))
    exact = task.network(inputs).detach()
    errors = [float((each - exact).norm()) for each in outputs]
    assert errors[0] < errors[1] < errors[2]


def test_gradients_reach_every_option_and_nothing_else(task):
    env = env_of(task, decisions="joint", metric="bops", budget=0.5)
    player, _ = learn(env, 6)
    assert (player._logits.grad != 0).all()
    assert all(parameter.grad is None for parameter in player._network.parameters())
    assert all(parameter.grad is None for parameter in task.network.parameters())


def test_is_better_than_what_it_began_with_and_than_random(task):
    losses = []
    for seed in range(2):
        env = env_of(task, budget=0.4)
        learn(env, 40, seed)
        assert all(info["feasible"] for info in env.infos)
        random = env_of(task, budget=0.4)
        make_agent("random", random, seed).learn(40, lambda metrics: None)
        losses.append([env.infos[0]["loss"], *(min(info["loss"] for info in each.infos) for each in (env, random))])
    began, found, drawn = np.mean(losses, axis=0)
    assert found < began
    assert found < drawn


@pytest.mark.parametrize("evaluations", [1, 2, 7, 30])
def test_what_was_computed_never_exceeds_what_was_charged(task, evaluations):
    env = env_of(task)
    player, logged = learn(env, evaluations)
    assert len(env.infos) == evaluations
    bits = [np.array(each).tobytes() for each in env.bits]
    step = 3 * 16 / 96
    spent = logged[-1]["train/equivalent_evaluations"] if logged else 0.0
    assert spent <= evaluations / 2
    assert spent == pytest.approx(evaluations // 2 // step * step)
    assert len(set(bits)) + spent <= evaluations
    player.learn(4, logged.append)
    assert len(env.infos) == evaluations + 4


def test_steps_are_charged_before_what_they_lead_to_is_evaluated(task):
    env = env_of(task)
    player = make_agent("differentiable", env, 0, {"batch_size": 16, "block": 5})
    step, steps = player._step, []

    def counted():
        steps.append(len(env.infos))  # evaluations charged when a step was run
        return step()

    player._step = counted
    player.learn(20, lambda metrics: None)
    assert steps
    bits = [np.array(each).tobytes() for each in env.bits]
    for charged in set(steps):
        run = sum(each <= charged for each in steps) * 3 * 16 / 96
        assert len(set(bits[:charged])) + run <= charged


def test_expected_cost_is_led_to_the_budget(task):
    _, logged = learn(env_of(task, budget=0.4), 60, share=1.0, multiplier_rate=0.2)
    assert logged[0]["train/expected_cost"] > 1.2
    assert logged[-1]["train/expected_cost"] < 1.1
    assert logged[-1]["train/entropy"] < math.log(3)


def test_same_seed_same_search_without_global_random_states(task):
    before = torch.get_rng_state()
    searches = []
    for seed in (0, 0, 1):
        env = env_of(task)
        searches.append((learn(env, 20, seed)[1], env.bits))
        torch.rand(1)
    assert searches[0] == searches[1]
    assert searches[0] != searches[2]
    torch.set_rng_state(before)
    learn(env_of(task), 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("constraint", ["mask", "project", "reject", "lagrangian"])
@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
def test_learns_under_every_constraint_and_decision(task, constraint, decisions, tmp_path):
    pins = {task.layers[0].name: 8}
    options = {"metric": "bops", "budget": 0.8, "constraint": constraint, "decisions": decisions, "pinned": pins}
    env = env_of(task, **options)
    player, logged = learn(env, 8)
    assert [info["executed_actions"].tolist() for info in env.infos] == env.taken
    assert all(math.isfinite(value) for metrics in logged for value in metrics.values())
    best = play_greedily(env, player)
    player.save(tmp_path / "agent")
    other = make_agent("differentiable", env)
    other.load(tmp_path / "agent")
    assert play_greedily(env, other) == best


def test_trains_on_the_training_split_only(task):
    player, _ = learn(env_of(task), 1)
    corrupt = {name: task.splits[name] for name in task.splits}
    corrupt["test"] = Split(torch.full((4, 3, 16, 16), math.nan), torch.zeros(4, dtype=torch.int64))
    corrupt["search"] = Split(torch.full((4, 3, 16, 16), math.inf), corrupt["test"].labels)
    player._task = copy.copy(task)
    object.__setattr__(player._task, "splits", corrupt)  # which a task would refuse when it is made
    assert math.isfinite(player._step())


def test_tables_and_bare_evaluators_are_refused():
    with pytest.raises(QuantenvError, match=r"table 'synthetic_table' holds only evaluations.*task 'synthetic'"):
        DifferentiableAgent(QuantizationEnv(synthetic_table(), budget=0.5))
    with pytest.raises(QuantenvError, match=r"evaluator only: make it with a task"):
        DifferentiableAgent(make_env())


@pytest.mark.parametrize(
    ("option", "value"),
    [("share", 1.5), ("block", 0), ("batch_size", 0), ("learning_rate", -1.0), ("temperature", 0.0)],
)
def test_bad_config_is_one_clear_error(option, value):
    with pytest.raises(QuantenvError, match=f"{option} must be"):
        DifferentiableConfig(**{option: value})
