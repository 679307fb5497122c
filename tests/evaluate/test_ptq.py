import dataclasses

import pytest
import torch
import torch.nn.functional as F

from quantenv.allocation import Allocation
from quantenv.errors import AllocationError, QuantenvError
from quantenv.evaluate import evaluator_names, make_evaluator
from quantenv.evaluate.ptq import PTQEvaluator, evaluate_logits
from quantenv.tasks import Split, get_task
from tests.synthetic import synthetic_layers


@pytest.fixture(scope="module")
def evaluator():
    return PTQEvaluator(get_task("digits"))


def test_reference_is_the_float_network_on_the_search_split(evaluator):
    split = evaluator.task.splits["search"]
    with torch.no_grad():
        logits = evaluator.task.network(split.inputs)
    assert evaluator.reference.correct == int((logits.argmax(1) == split.labels).sum())
    assert evaluator.reference.loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert evaluator.reference.samples == 450


def test_batches_do_not_change_counts():
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(1300, 5, generator=generator), torch.randint(0, 5, (1300,), generator=generator))
    evaluation = evaluate_logits(lambda x: x, split)
    assert evaluation.correct == int((split.inputs.argmax(1) == split.labels).sum())
    assert evaluation.loss == pytest.approx(F.cross_entropy(split.inputs.double(), split.labels).item(), rel=1e-9)
    assert evaluation.accuracy == evaluation.correct / 1300


def test_the_same_allocation_gives_the_same_numbers_in_any_order(evaluator):
    allocations = [Allocation.make(evaluator.layers, bits, 8) for bits in (2, 5, 3, 8)]
    forwards = evaluator.evaluate(allocations)
    assert evaluator.evaluate(allocations[::-1])[::-1] == forwards
    assert [evaluator.evaluate([allocation])[0] for allocation in allocations] == forwards
    assert PTQEvaluator(evaluator.task).evaluate(allocations) == forwards


def test_splits_are_kept_apart(evaluator):
    allocation = [Allocation.make(evaluator.layers, 3)]
    assert evaluator.evaluate(allocation, "search") != evaluator.evaluate(allocation, "test")


def test_identity_tells_evaluators_apart(evaluator):
    finetune = make_evaluator("finetune", evaluator.task)
    assert evaluator.identity == PTQEvaluator(evaluator.task).identity != finetune.identity


def test_bad_input_is_refused(evaluator):
    with pytest.raises(AllocationError, match="does not fit"):
        evaluator.evaluate([Allocation.make(synthetic_layers(2), 8)])
    with pytest.raises(QuantenvError, match="Did you mean 'ptq'"):
        make_evaluator("pqt", evaluator.task)
    with pytest.raises(QuantenvError, match=r"Unknown quantization scheme 'lienar'\. Did you mean 'linear'"):
        PTQEvaluator(dataclasses.replace(evaluator.task, scheme="lienar"))
    assert evaluator_names() == ("ptq", "finetune")
