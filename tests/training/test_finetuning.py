import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.evaluation.post_training import PTQEvaluator, evaluate_logits
from quantenv.tasks import Split, Task
from quantenv.training import FinetuneConfig, FinetuneEvaluator, check_recipe, finetune
from quantenv.training import epochs as epochs_module
from quantenv.training.parallel import Share
from quantenv.training.qat.base import LSQQuantizer
from quantenv.training.session import Session
from tests.digits import few_digits
from tests.synthetic import synthetic_layers


@pytest.fixture(scope="module")
def task():
    return few_digits("linear")


@pytest.fixture(scope="module")
def tiny():
    """Two layers, in a moment."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(96, 6, generator=generator), torch.arange(96) % 4
    parts = {"train": slice(0, 48), "calibration": slice(0, 16), "search": slice(48, 72), "test": slice(72, 96)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 4))
    return Task("tiny", network, {name: Split(inputs[part], labels[part]) for name, part in parts.items()})


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
    assert epochs[result.best_epoch][1]["qat/search_loss"] == result.search.loss  # though norms were live then
    assert epochs[-1][1]["qat/learning_rate"] == pytest.approx(0.0, abs=1e-12)
    losses = [metrics["qat/train_loss"] for _, metrics in epochs[1:]]
    assert losses[-1] < losses[0]


def test_the_checkpoint_is_the_network_that_was_measured(task, coarse):
    result = finetune(task, coarse, FinetuneConfig(epochs=1))
    assert evaluate_logits(result.network, task.splits["search"]) == result.search
    assert evaluate_logits(result.network, task.splits["test"]) == result.test
    inputs = task.splits["search"].inputs
    with torch.inference_mode():
        first, *others = (torch.cat([result.network(part) for part in inputs.split(size)]) for size in (450, 256, 7, 1))
    assert all(torch.equal(first, each) for each in others)


def test_trained_weights_stay_on_few_values(task, coarse):
    result = finetune(task, coarse, FinetuneConfig(epochs=1))
    layer = result.network.get_submodule("block1.pointwise")
    assert isinstance(layer.weight_quantizer, LSQQuantizer)
    for channel in layer.weight_quantizer(layer.weight):
        assert len(channel.unique()) <= 7


def test_the_float_network_is_run_once_and_only_if_something_is_trained(tiny, monkeypatch):
    task = dataclasses.replace(tiny, name="counted")  # a network of its own
    batches = []

    def counted(teacher, compiled, device):
        return lambda inputs: (batches.append(len(inputs)), teacher(inputs))[1]

    monkeypatch.setattr(epochs_module, "_teacher_on", counted)
    three, eight = (Allocation.make(task.layers, bits) for bits in (3, 8))
    finetune(task, three, FinetuneConfig(epochs=0))
    assert batches == []
    finetune(task, three, FinetuneConfig(epochs=1, batch_size=16, distillation=0.0))
    assert batches == []
    for allocation in (three, eight):
        finetune(task, allocation, FinetuneConfig(epochs=2, batch_size=16))
    assert sum(batches) == len(task.splits["train"])


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
    tasks = {"linear": task, "k-means": few_digits("k-means")}

    def trained(scheme="linear", **changes):
        found = finetune(tasks[scheme], coarse, FinetuneConfig(epochs=1, **changes))
        return found.state["block1.pointwise.weight"]

    assert torch.equal(trained(), trained(norms="live"))
    assert not torch.equal(trained(), trained(norms="folded"))
    codebooks = {"weight_quantizer": "k-means"}
    assert torch.equal(trained(**codebooks), trained(**codebooks, norms="folded"))
    assert torch.equal(trained("k-means"), trained("k-means", norms="folded"))


def test_bad_input_is_refused(task, coarse):
    with pytest.raises(QuantenvError, match="only 256 samples"):
        finetune(task, coarse, FinetuneConfig(batch_size=1000))
    with pytest.raises(AllocationError, match="does not fit"):
        finetune(task, Allocation.make(synthetic_layers(2), 8))


@pytest.mark.parametrize(
    ("start", "train", "search", "diverged"),
    [
        (0.5, 2.4, 2.4, True),
        (0.5, 2.4, 2.2, False),  # chance is log(10) = 2.3
        (0.5, 2.2, 9.0, False),
        (5.0, 4.0, 9.0, False),  # not worse than before
        (5.0, 6.0, 6.0, True),
        (0.5, 2.4, np.nan, True),
    ],
)
def test_divergence_is_a_loss_worse_than_before_and_than_chance(tiny, start, train, search, diverged):
    session = Session(copy.deepcopy(tiny.network), FinetuneConfig(), 1, Share())
    session.history = [{"qat/search_loss": start}, {"qat/search_loss": search, "qat/train_loss": train}]
    assert session.diverged(10) == diverged
    session.history.pop()
    assert not session.diverged(10)


@pytest.mark.parametrize("recipe", [{"learning_rate": 1e6}, {"learning_rate": 1e6, "norms": "folded"}])
def test_training_that_diverges_says_so(task, coarse, recipe, caplog):
    losses = []
    config = FinetuneConfig(epochs=2, **recipe)
    result = finetune(task, coarse, config, lambda _, metrics: losses.append(metrics.get("qat/train_loss", 0.0)))
    assert not losses[-1] < np.log(10)
    assert result.diverged
    assert result.best_epoch == 0
    assert result.remark == (
        "training diverged (lower its learning rate), and the result is the network before training"
    )
    assert result.search == finetune(task, coarse, FinetuneConfig(epochs=0)).search
    assert result.remark in caplog.text


def test_training_that_ends_in_nan_ends_at_once_and_leaves_a_sound_checkpoint(task, coarse, tmp_path):
    config, epochs = FinetuneConfig(epochs=5, learning_rate=1e20), []
    results = []
    for _ in range(2):  # the second time from the checkpoint
        results.append(finetune(task, coarse, config, lambda epoch, _: epochs.append(epoch), tmp_path / "checkpoint"))
    assert epochs == [0, 1, 0, 1]
    assert all(result.diverged and result.epochs == 1 for result in results)
    assert results[0].search == results[1].search


def test_training_that_helps_or_does_nothing_says_so(task, coarse):
    assert finetune(task, coarse, FinetuneConfig(epochs=1)).remark is None
    assert finetune(task, coarse, FinetuneConfig(epochs=0)).remark == "nothing was trained: 0 epochs"
    idle = finetune(task, coarse, FinetuneConfig(epochs=1, learning_rate=0.0, norms="folded"))
    assert not idle.diverged
    assert idle.remark == "no epoch of 1 was better than before, so the result is the network before training"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("lsq", "lsq"),
        ("lsq", "lsq+"),
        ("linear", "linear"),
        ("dorefa", "dorefa"),
        ("dorefa", "pact"),
        ("mid-rise", "lsq"),
        ("k-means", "lsq"),
    ],
)
def test_every_quantizer_at_every_width_keeps_what_was_best(tiny, bits, weights, activations):
    recipe = FinetuneConfig(epochs=2, batch_size=16, weight_quantizer=weights, activation_quantizer=activations)
    result = finetune(tiny, Allocation.make(tiny.layers, bits, bits), recipe)
    assert np.isfinite(result.search.loss)
    assert not any(tensor.is_inference() for tensor in result.state.values())
    assert evaluate_logits(result.network, tiny.splits["search"]) == result.search
    for layer in ("0", "3"):
        found = result.network.get_submodule(layer)
        rounded = found.weight_quantizer(found.weight).detach()
        assert all(len((row / row.abs().max()).round(decimals=4).unique()) <= 2**bits for row in rounded)


def test_a_batch_of_one_is_refused_where_a_batch_norm_sees_one_value(tiny):
    norm_first = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    normed = dataclasses.replace(tiny, network=norm_first)
    allocation = Allocation.make(normed.layers, 4)
    with pytest.raises(QuantenvError, match="Batch norm '0' cannot train on a batch of 1: it sees one value"):
        finetune(normed, allocation, FinetuneConfig(epochs=1, batch_size=1))
    finetune(normed, allocation, FinetuneConfig(epochs=0, batch_size=1))
    finetune(normed, allocation, FinetuneConfig(epochs=1, batch_size=2))
    finetune(tiny, Allocation.make(tiny.layers, 4), FinetuneConfig(epochs=1, batch_size=1))


def test_one_training_sample_is_enough(tiny):
    alone = Split(tiny.splits["train"].inputs[:1], tiny.splits["train"].labels[:1])
    one = dataclasses.replace(tiny, splits={**tiny.splits, "train": alone, "calibration": alone})
    assert finetune(one, Allocation.make(one.layers, 4), FinetuneConfig(epochs=1, batch_size=1)).epochs == 1
    with pytest.raises(QuantenvError, match="has only 1 samples"):
        finetune(one, Allocation.make(one.layers, 4), FinetuneConfig(epochs=1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 49}, "batch_size is 49; the training split has only 48 samples"),
        ({"crop": 1}, r"crop and flip are for images \(B, C, H, W\); the inputs are \(48, 6\)"),
        ({"flip": True}, "crop and flip are for images"),
        ({"batch_size": 1}, "Batch norm '0' cannot train on a batch of 1"),
        ({"weight_quantizer": "k-means", "norms": "live"}, "'k-means' has one codebook"),
    ],
)
def test_a_recipe_that_fits_no_allocation_is_refused_before_any_is_found(tiny, changes, sentence):
    normed = dataclasses.replace(tiny, network=nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)))
    config = FinetuneConfig(epochs=1, **changes)
    for refuse in (check_recipe, lambda task, config: finetune(task, Allocation.make(task.layers, 4), config)):
        with pytest.raises(QuantenvError, match=sentence):
            refuse(normed, config)
    check_recipe(normed, FinetuneConfig(epochs=0, **{**changes, "norms": None}))
    check_recipe(normed, FinetuneConfig(epochs=1))


def test_few_samples_need_no_batch_where_nothing_is_trained(tiny):
    assert finetune(tiny, Allocation.make(tiny.layers, 4), FinetuneConfig(epochs=0, batch_size=100)).epochs == 0
