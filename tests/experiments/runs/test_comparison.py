import itertools
import math
from types import SimpleNamespace

import pytest

from experiments.runs.comparison import (
    POST_TRAINING,
    QAT,
    best_uniform,
    chance_note,
    compare,
    costs_of,
    float_costs,
    uniform_allocations,
    verdicts,
)
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.base import Evaluation
from tests.synthetic import AdditiveEvaluator


def make_env(**options):
    evaluator = AdditiveEvaluator()
    options = {"budget": 0.5, "metric": "bops"} | options
    return evaluator, QuantizationEnv(None, evaluator=evaluator, sensitivity=evaluator.sensitivity, **options)


@pytest.mark.parametrize("decisions", ["weights", "weights+activations", "joint"])
@pytest.mark.parametrize("pinned", [None, "first_last", {"layer2": 6}])
def test_uniform_allocations_are_all_that_brute_force_finds(decisions, pinned):
    evaluator, env = make_env(decisions=decisions, pinned=pinned, bits=(3, 5, 8), budget=0.7)
    layers = evaluator.layers
    pins = {None: {}, "first_last": {0: 8, len(layers) - 1: 8}}.get(pinned if isinstance(pinned, str) else None)
    if isinstance(pinned, dict):
        pins = {2: 6}
    limit = 0.7 * sum(layer.macs * 64 for layer in layers)
    expected = set()
    for weight, activation in itertools.product((3, 5, 8), (8,) if decisions == "weights" else (3, 5, 8)):
        bits = tuple((pins[i],) * 2 if i in pins else (weight, activation) for i in range(len(layers)))
        if sum(layer.macs * w * a for layer, (w, a) in zip(layers, bits, strict=True)) <= limit:
            expected.add(bits)
    found = uniform_allocations(env)
    assert {allocation.bits for allocation in found} == expected
    assert len(found) == len(expected)


def test_best_uniform_is_the_best_of_them_on_search():
    evaluator, env = make_env(decisions="joint")
    best = best_uniform(env, evaluator)
    assert best in uniform_allocations(env)
    assert evaluator.total_harm(best) == min(map(evaluator.total_harm, uniform_allocations(env)))


def test_no_uniform_allocation_may_be_feasible():
    evaluator, env = make_env(bits=(2, 8), metric="size", budget=0.4, pinned={"layer5": 8})
    spare = [Allocation.make(evaluator.layers, 2)]
    assert best_uniform(env, evaluator) is not None or spare
    _, tight = make_env(bits=(2, 8), metric=["size", "bops"], budget=[0.26, 0.26])
    assert {a.bits for a in uniform_allocations(tight)} == {((2, 8),) * 6}


def test_float_costs_are_those_of_32_bits():
    evaluator, env = make_env()
    layers = evaluator.layers
    ends = itertools.pairwise(layers)
    assert float_costs(env) == {
        "size": 4 * sum(layer.params for layer in layers),
        "bops": 1024 * sum(layer.macs for layer in layers),
        "memory": 4 * max(before.input_elements + after.input_elements for before, after in ends),
    }


def trained(correct, samples, loss=0.1, best_epoch=3, diverged=False):
    evaluation = Evaluation(correct, samples, loss)
    return SimpleNamespace(test=evaluation, best_epoch=best_epoch, diverged=diverged, history=())


def rows_for(found, uniform, fine_tune=None):
    evaluator, env = make_env()
    return compare(env, evaluator, evaluator.reference, uniform, found, fine_tune)


def test_rows_and_their_numbers():
    evaluator, env = make_env()
    uniform, found = best_uniform(env, evaluator), Allocation.make(evaluator.layers, [2, 3, 4, 5, 4, 3])
    asked = []

    def fine_tune(name, allocation):
        asked.append((name, allocation))
        return trained(9_500, 10_000, 0.2)

    rows = compare(env, evaluator, evaluator.reference, uniform, found, fine_tune)
    assert [(row.name, row.stage) for row in rows] == [
        ("float", ""),
        ("uniform 8", POST_TRAINING),
        ("best uniform", POST_TRAINING),
        ("best uniform", QAT),
        ("found", POST_TRAINING),
        ("found", QAT),
    ]
    assert asked == [("best uniform", uniform), ("found", found)]
    assert rows[0].evaluation == evaluator.reference
    assert rows[1].within_budget is False
    assert rows[2].within_budget is True
    assert rows[4].evaluation == evaluator.evaluate([found], "test")[0]
    assert rows[4].costs == rows[5].costs == costs_of(env, found)
    assert Allocation.from_dict(rows[4].allocation) == found
    assert rows[5].evaluation == Evaluation(9_500, 10_000, 0.2)


def scored(found_correct, uniform_correct, samples=450):
    evaluator, env = make_env()
    allocation = Allocation.make(evaluator.layers, 4)
    results = {"found": found_correct, "best uniform": uniform_correct}
    rows = compare(
        env,
        evaluator,
        evaluator.reference,
        allocation,
        allocation,
        lambda name, _: trained(results[name], samples),
    )
    return verdicts(rows)[1]


def test_verdict_of_a_win():
    p, q, n = 440 / 450, 400 / 450, 450
    error = 100 * math.sqrt(p * (1 - p) / n + q * (1 - q) / n)
    sentence = scored(440, 400)
    assert sentence.startswith("After QAT, mixed precision beat the best feasible uniform allocation (4/8) by 8.89 ")
    assert f"standard error of the difference {error:.2f} points." in sentence
    assert "450 test images" in sentence
    assert "noise" not in sentence


def test_verdict_of_a_loss_and_of_noise():
    assert "mixed precision lost to the best feasible uniform allocation (4/8) by 8.89 " in scored(400, 440)
    assert "lost to" in scored(439, 440)
    assert "within the noise" in scored(439, 440)


def test_verdict_of_a_tie():
    assert "tied with" in scored(440, 440)


def test_verdict_without_a_side():
    allocation = Allocation.make(AdditiveEvaluator().layers, 4)
    assert verdicts(rows_for(None, allocation)) == ("The search found no feasible allocation.",)
    assert verdicts(rows_for(allocation, None))[0].startswith("No uniform allocation meets the budget")


def test_a_network_at_chance_is_told_from_one_that_knows_something():
    labels = [0] * 50 + [1] * 30 + [2] * 20  # always naming class 0 is right half of the time, give or take 5%
    note = chance_note(labels, Evaluation(60, 100, 1.0))
    assert "right on 60.0% of the search split" in note
    assert "the same class always (50.0%)" in note
    assert chance_note(labels, Evaluation(61, 100, 1.0)) is None
    assert chance_note([0, 0], Evaluation(2, 2, 0.0)) is not None  # of one class nothing can be learned


def test_no_verdict_on_training_that_diverged_or_did_nothing():
    evaluator, env = make_env()
    allocation = Allocation.make(evaluator.layers, 4)

    def verdict(**results):
        rows = compare(env, evaluator, evaluator.reference, allocation, allocation, lambda name, _: results[name[:4]])
        return [row.stage_title for row in rows if row.stage == QAT], verdicts(rows)[1]

    fine, lost = trained(440, 450), trained(400, 450, best_epoch=2, diverged=True)
    untrained = trained(400, 450, best_epoch=0)
    titles, sentence = verdict(best=fine, foun=lost)
    assert titles == ["QAT", "QAT, diverged"]
    assert sentence == (
        "After QAT, there is no verdict: training of found (its row is epoch 2) diverged. Lower --qat.learning_rate or "
        "set --qat.clip."
    )
    assert "of best uniform 4/8 (its row is epoch 2) and of" not in sentence
    assert "of found (its row is epoch 2) and of best uniform 4/8" in verdict(best=lost, foun=lost)[1]
    titles, sentence = verdict(best=untrained, foun=untrained)
    assert titles == ["QAT, epoch 0"] * 2
    assert "no epoch of training was better than none" in sentence
    assert verdict(best=untrained, foun=fine)[1].startswith("After QAT, mixed precision beat")
