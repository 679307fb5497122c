import dataclasses

import numpy as np
import pytest
import torch

from quantenv.allocation import Allocation
from quantenv.errors import AllocationError, QuantenvError
from quantenv.evaluate.ptq import PTQEvaluator, evaluate_logits
from quantenv.finetune import FinetuneConfig, FinetuneEvaluator, finetune
from quantenv.quantize import LSQQuantizer
from quantenv.tasks import get_task
from tests.synthetic import synthetic_layers


@pytest.fixture(scope="module")
def task():
    return get_task("digits")


@pytest.fixture(scope="module")
def coarse(task):
    return Allocation.make(task.layers, 3)


def test_training_repairs_a_coarse_allocation(task, coarse):
    before = PTQEvaluator(task).evaluate([coarse], "test")[0]
    epochs = []
    result = finetune(task, coarse, FinetuneConfig(epochs=4), lambda epoch, metrics: epochs.append((epoch, metrics)))
    assert result.test.accuracy > before.accuracy + 0.1
    assert [epoch for epoch, _ in epochs] == [0, 1, 2, 3, 4]
    assert result.search.accuracy == max(metrics["qat/search_accuracy"] for _, metrics in epochs)
    assert epochs[result.best_epoch][1]["qat/search_loss"] == result.search.loss
    assert epochs[-1][1]["qat/learning_rate"] == pytest.approx(0.0, abs=1e-12)
    losses = [metrics["qat/train_loss"] for _, metrics in epochs[1:]]
    assert losses[-1] < losses[0]


def test_the_checkpoint_is_the_network_that_was_measured(task, coarse):
    result = finetune(task, coarse, FinetuneConfig(epochs=1))
    assert evaluate_logits(result.network, task.splits["search"]) == result.search
    assert evaluate_logits(result.network, task.splits["test"]) == result.test


def test_trained_weights_stay_on_few_values(task, coarse):
    result = finetune(task, coarse, FinetuneConfig(epochs=1))
    layer = result.network.get_submodule("block1.pointwise")
    assert isinstance(layer.weight_quantizer, LSQQuantizer)
    for channel in layer.weight_quantizer(layer.weight):
        assert len(channel.unique()) <= 7


def test_same_seed_same_result_and_no_global_state(task, coarse):
    config = FinetuneConfig(epochs=1, seed=5)
    state = torch.get_rng_state()
    first = finetune(task, coarse, config)
    torch.rand(3)
    second = finetune(task, coarse, config)
    assert (first.search, first.test) == (second.search, second.test)
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    other = finetune(task, coarse, FinetuneConfig(epochs=1, seed=6))
    assert any(not torch.equal(first.state[key], other.state[key]) for key in first.state)
    torch.set_rng_state(state)
    finetune(task, coarse, FinetuneConfig(epochs=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_zero_epochs_is_post_training_quantization(task, coarse):
    assert finetune(task, coarse, FinetuneConfig(epochs=0)).search.correct == pytest.approx(
        PTQEvaluator(task).evaluate([coarse])[0].correct, abs=2
    )


def test_the_evaluator_fine_tunes_each_allocation(task, coarse):
    evaluator = FinetuneEvaluator(task)
    fine = Allocation.make(task.layers, 6)
    first, second = evaluator.evaluate([coarse, fine])
    expected = finetune(task, coarse, FinetuneConfig(epochs=1))
    assert first == expected.search
    assert second.accuracy > 0.95
    assert evaluator.evaluate([coarse], "test")[0] == expected.test
    assert FinetuneEvaluator(task, FinetuneConfig(epochs=2)).identity != evaluator.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": np.nan}, "learning_rate is nan"),
        ({"distillation": 1.5}, "distillation is 1.5"),
        ({"weight_quantizer": "pact"}, "Unknown quantizer of weights 'pact'"),
        ({"activation_quantizer": "lsqplus"}, r"Did you mean 'lsq' or 'lsq\+'"),
    ],
)
def test_recipes_out_of_range_are_refused(changes, message):
    with pytest.raises(QuantenvError, match=message):
        FinetuneConfig(**changes)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("linear", "linear"),
        ("dorefa", "dorefa"),
        ("dorefa", "pact"),
        ("k-means", "lsq"),
        ("lsq", "lsq+"),
        ("mid-rise", "lsq"),
    ],
)
def test_every_quantizer_trains(task, weights, activations):
    allocation = Allocation.make(task.layers, 3, 4)
    recipe = FinetuneConfig(epochs=1, weight_quantizer=weights, activation_quantizer=activations)
    result = finetune(task, allocation, recipe)
    untrained = finetune(task, allocation, dataclasses.replace(recipe, epochs=0))
    assert result.search.accuracy > max(0.85, untrained.search.accuracy)
    layer = result.network.get_submodule("block1.pointwise")
    rounded = layer.weight_quantizer(layer.weight).detach().flatten(1)
    assert all(len(channel.unique()) <= 8 for channel in rounded)


def test_fine_tuning_moves_centroids_and_by_default_follows_the_scheme(task, coarse):
    codebooks = dataclasses.replace(task, scheme="k-means")
    before = finetune(codebooks, coarse, FinetuneConfig(epochs=0)).state
    after = finetune(codebooks, coarse, FinetuneConfig(epochs=1))
    name = "block1.pointwise.weight_quantizer.values"
    assert not torch.equal(before[name], after.state[name])
    assert len(after.state[name]) == 8
    explicit = FinetuneConfig(epochs=1, weight_quantizer="k-means")
    assert finetune(task, coarse, explicit).search == after.search  # the ranges of activations are the same


def test_recipes_keep_the_identities_that_stores_know():
    assert FinetuneConfig(epochs=1, norms="folded").identity == (  # what the default once was
        "{'epochs': 1, 'batch_size': 32, 'learning_rate': 0.005, 'step_learning_rate': 0.1, 'momentum': 0.9, "
        "'weight_decay': 0.0001, 'distillation': 0.5, 'seed': 0}"
    )
    assert "'norms': None" in FinetuneConfig(epochs=1).identity
    identities = {
        FinetuneConfig(**changes).identity
        for changes in ({}, {"weight_quantizer": "linear"}, {"activation_quantizer": "pact"}, {"seed": 1})
    }
    assert len(identities) == 4


def test_batch_norms_are_live_unless_a_codebook_forbids_it(task, coarse):
    def trained(scheme="linear", **changes):
        found = finetune(dataclasses.replace(task, scheme=scheme), coarse, FinetuneConfig(epochs=1, **changes))
        return found.state["block1.pointwise.weight"]

    assert torch.equal(trained(), trained(norms="live"))
    assert not torch.equal(trained(), trained(norms="folded"))
    codebooks = {"weight_quantizer": "k-means"}
    assert torch.equal(trained(**codebooks), trained(**codebooks, norms="folded"))
    assert torch.equal(trained("k-means"), trained("k-means", norms="folded"))


def test_bad_input_is_refused(task, coarse):
    with pytest.raises(QuantenvError, match="only 897 samples"):
        finetune(task, coarse, FinetuneConfig(batch_size=1000))
    with pytest.raises(AllocationError, match="does not fit"):
        finetune(task, Allocation.make(synthetic_layers(2), 8))
    with pytest.raises(QuantenvError, match="diverged"):
        finetune(task, coarse, FinetuneConfig(epochs=2, learning_rate=1e6))
