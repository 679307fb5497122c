"""Options of the recipe: compiling, bfloat16, moving averages, augmentation, re-estimated batch norms."""

import dataclasses
import logging

import pytest
import torch
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.post_training import evaluate_logits
from quantenv.evaluation.preparing import calibrate_task
from quantenv.training import FinetuneConfig, FinetuneEvaluator, compilation, finetune
from quantenv.training.fit import TrainingRecipe, train_float
from tests.digits import few_digits

ONE_EPOCH = FinetuneConfig(epochs=1)


@pytest.fixture(scope="module")
def task():
    return few_digits()


@pytest.fixture(scope="module")
def allocation(task):
    return Allocation.make(task.layers, 3, 4)


@pytest.fixture(scope="module")
def plain(task, allocation):
    return finetune(task, allocation, ONE_EPOCH)


@pytest.fixture(scope="module")
def shallow():
    """Two layers: a network is compiled operator by operator."""
    full = few_digits()

    def network():
        convolution = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))

    trained = train_float(network, full.splits["train"], TrainingRecipe(epochs=10))
    return dataclasses.replace(full, name="shallow", network=trained)


@pytest.mark.parametrize("what", ["quantizers", "network"])
def test_compiled_it_trains_as_well_reproducibly(shallow, what):
    allocation = Allocation.make(shallow.layers, 3, 4)
    trains_about_as_well_reproducibly(shallow, allocation, finetune(shallow, allocation, ONE_EPOCH), {"compile": what})


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"ema": 0.5},
        {"crop": 1, "seed": 1},
        {"batch_norm": True},
        {"norms": "folded"},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_each_option_trains_about_as_well_reproducibly(task, allocation, plain, changes):
    trains_about_as_well_reproducibly(task, allocation, plain, changes)


def trains_about_as_well_reproducibly(task, allocation, plain, changes):
    config = dataclasses.replace(ONE_EPOCH, **changes)
    result, again = (finetune(task, allocation, config) for _ in range(2))
    assert result.search.accuracy > plain.search.accuracy - 0.05
    assert all(torch.equal(result.state[key], again.state[key]) for key in result.state)
    assert result.state.keys() == plain.state.keys()
    assert evaluate_logits(result.network, task.splits["search"]) == result.search
    assert config.identity != ONE_EPOCH.identity


def test_the_best_epoch_is_chosen_from_those_that_count(task):
    allocation = Allocation.make(task.layers, 8, 8)  # nothing to be won: training at this rate only harms
    recipe = FinetuneConfig(epochs=2, learning_rate=0.05, distillation=0.0, norms="folded")
    epochs = []

    def on_epoch(_epoch, metrics):
        epochs.append((-metrics["qat/search_accuracy"], metrics["qat/search_loss"]))

    best = []
    for choose_from in (0, 1, 2):
        epochs.clear()
        result = finetune(task, allocation, dataclasses.replace(recipe, choose_from=choose_from), on_epoch)
        assert (-result.search.accuracy, result.search.loss) == min(epochs[choose_from:])
        best.append(result.best_epoch)
    assert (best[0], best[2]) == (0, 2)
    with pytest.raises(QuantenvError, match="choose_from is 3"):
        dataclasses.replace(recipe, choose_from=3)


def test_a_moving_average_lags_behind(task, allocation):
    trained_on = FinetuneConfig(epochs=1, choose_from=1)
    recipes = (FinetuneConfig(epochs=0), trained_on, dataclasses.replace(trained_on, ema=0.99))
    start, trained, averaged = (
        finetune(task, allocation, dataclasses.replace(recipe, norms="folded")).state["block1.pointwise.weight"]
        for recipe in recipes
    )
    assert 0 < (averaged - start).norm() < 0.7 * (trained - start).norm()


def test_reestimated_batch_norms_are_kept_only_if_they_are_better(task):
    allocation = Allocation.make(task.layers, 2, 8)
    untrained, again = (finetune(task, allocation, FinetuneConfig(epochs=0, batch_norm=each)) for each in (False, True))
    assert again.search.accuracy > untrained.search.accuracy  # rounding to 2 bits moves the statistics
    trained, kept = (finetune(task, allocation, FinetuneConfig(epochs=4, batch_norm=each)) for each in (False, True))
    assert (-kept.search.correct, kept.search.loss) <= (-trained.search.correct, trained.search.loss)


def test_auto_compiles_where_it_pays_and_says_so(task, caplog):
    calibration, auto = calibrate_task(task), FinetuneConfig(compile="auto")
    caplog.set_level(logging.INFO, "quantenv")
    values = auto.batch_size * sum(site.features for site in calibration.sites)  # of a step
    (few, saved), (many, saved_more) = (compilation.COSTS[name] for name in ("quantizers", "network"))
    assert compilation.resolve(auto, calibration, 10) == "never"
    assert "10 steps would save" in caplog.messages[-1]
    assert compilation.resolve(auto, calibration, int(2 * few / (values * saved))) == "quantizers"
    assert compilation.resolve(auto, calibration, int(2 * (many - few) / (values * (saved_more - saved)))) == "network"
    assert compilation.resolve(auto, calibration, 10**8) == "network"
    assert "Compiling the network: 100000000 steps save" in caplog.messages[-1]
    assert compilation.resolve(dataclasses.replace(auto, compile="never"), calibration, 10**7) == "never"
    other = dataclasses.replace(auto, weight_quantizer="linear", activation_quantizer="pact")
    assert compilation.resolve(other, calibration, 10**7) == "never"
    assert "only lsq is compiled" in caplog.messages[-1]


def test_without_a_compiler_auto_goes_on_with_a_warning_and_the_rest_is_refused(task, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "compiler_obstacle", lambda: "there is no compiler")
    assert compilation.resolve(FinetuneConfig(compile="auto"), calibrate_task(task), 10**7) == "never"
    assert caplog.records[-1].levelno == logging.WARNING
    assert "there is no compiler" in caplog.messages[-1]
    with pytest.raises(QuantenvError, match="there is no compiler"):
        compilation.resolve(FinetuneConfig(compile="network"), calibrate_task(task), 1)


def test_the_evaluator_s_identity_says_whether_it_compiles(task):
    auto = FinetuneEvaluator(task, dataclasses.replace(ONE_EPOCH, compile="auto"))  # too short to pay
    assert auto.identity == FinetuneEvaluator(task).identity
    compiled = FinetuneEvaluator(task, dataclasses.replace(ONE_EPOCH, compile="quantizers"))
    assert compiled.identity != auto.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 1.0}, "never move"),
        ({"ema": -0.1}, "ema is -0.1"),
        ({"crop": -1}, "crop is -1"),
        ({"compile": "networks"}, "network"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(QuantenvError, match=message):
        FinetuneConfig(**changes)
