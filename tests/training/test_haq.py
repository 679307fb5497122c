import pytest
import torch
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.post_training import evaluate_logits
from quantenv.tasks import Split, Task, get_task
from quantenv.training.haq import HAQFinetuneEvaluator


@pytest.fixture(scope="module")
def task():
    return get_task("digits")


@pytest.fixture(scope="module")
def evaluators(task):
    return HAQFinetuneEvaluator(task), HAQFinetuneEvaluator(task, training_accuracy=True)


def test_references_are_of_the_images_that_count(task, evaluators):
    search, training = (evaluator.reference for evaluator in evaluators)
    assert search == evaluate_logits(task.network, task.splits["search"])
    assert training.samples == len(task.splits["train"])
    assert training.accuracy == evaluate_logits(task.network, task.splits["train"]).accuracy


def test_many_bits_keep_the_float_accuracy_and_few_lose_it(task, evaluators):
    eight, two = (Allocation.make(task.layers, bits, 8) for bits in (8, 2))
    for evaluator in evaluators:
        good, bad = evaluator.evaluate([eight, two])
        assert good.samples == bad.samples == evaluator.reference.samples
        assert abs(good.accuracy - evaluator.reference.accuracy) < 0.02
        assert bad.accuracy < good.accuracy
        assert bad.loss > good.loss


def test_an_epoch_helps(task, evaluators):
    low = [Allocation.make(task.layers, 2, 8)]  # which leave much to be learned: at 3 bits corrections suffice
    (before,) = make_evaluator("ptq-float", task, "off").evaluate(low)
    (after,) = evaluators[0].evaluate(low)
    assert after.loss < before.loss


def test_same_answer_every_time_and_no_global_state_is_touched(task, evaluators):
    allocation = [Allocation.make(task.layers, 3, 4)]
    state = torch.get_rng_state()
    first = [evaluator.evaluate(allocation) for evaluator in evaluators]
    assert torch.equal(torch.get_rng_state(), state)
    assert [evaluator.evaluate(allocation) for evaluator in evaluators] == first
    assert first[0] != first[1]
    assert evaluators[0].evaluate(allocation, "test") == evaluators[1].evaluate(allocation, "test")


def test_they_are_made_by_name(task, evaluators):
    for name, evaluator in zip(("finetune-haq", "finetune-haq-train"), evaluators, strict=True):
        assert make_evaluator(name, task, "off").identity == evaluator.identity
    assert evaluators[0].identity != evaluators[1].identity


def test_a_last_batch_of_one_is_refused_where_a_batch_norm_sees_one_value():
    inputs, labels = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 4
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    for count in (257, 258):
        parts = {
            "train": slice(0, count),
            "calibration": slice(0, 9),
            "search": slice(258, 280),
            "test": slice(280, 300),
        }
        task = Task("normed", network, {name: Split(inputs[part], labels[part]) for name, part in parts.items()})
        evaluator, allocation = HAQFinetuneEvaluator(task), Allocation.make(task.layers, 4)
        if count == 258:
            assert evaluator.evaluate([allocation])[0].samples == 22
            continue
        with pytest.raises(QuantenvError, match="Batch norm '0' cannot train on a batch of 1"):
            evaluator.evaluate([allocation])
