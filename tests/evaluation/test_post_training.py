import dataclasses

import pytest
import torch
import torch.nn.functional as F

from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.evaluation import evaluator_names, make_evaluator
from quantenv.evaluation.post_training import PTQEvaluator, evaluate_logits
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
    assert evaluation.loss == pytest.approx(F.cross_entropy(split.inputs.double(), split.labels).item(), abs=5.1e-7)
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
    assert evaluator_names() == ("ptq", "ptq-float", "ptq-integer", "finetune", "finetune-haq", "finetune-haq-train")


def test_backends_have_identities_of_their_own_and_nearly_the_same_numbers():
    task = get_task("digits")
    floats, automatic = make_evaluator("ptq-float", task), make_evaluator("ptq", task)
    allocations = [Allocation.make(task.layers, bits, 8) for bits in (2, 4, 8)]
    for one, other in zip(floats.evaluate(allocations), automatic.evaluate(allocations), strict=True):
        assert abs(one.correct - other.correct) <= 4
    assert floats.identity != automatic.identity
    assert make_evaluator("ptq-integer", task).identity == automatic.identity


@pytest.mark.parametrize(("batch", "images"), [(1, 8), (64, 70), (500, 450)])
def test_batches_and_threads_change_no_digit_of_integer_evaluations(evaluator, batch, images):
    search = evaluator.task.split("search")
    splits = {**evaluator.task.splits, "search": Split(search.inputs[:images], search.labels[:images])}
    task = dataclasses.replace(evaluator.task, splits=splits)
    allocations = [Allocation.make(task.layers, bits, 8) for bits in (2, 4, 8)]
    expected = PTQEvaluator(task).evaluate(allocations)
    other, before = PTQEvaluator(task), torch.get_num_threads()
    other.batch = batch
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert other.evaluate(allocations) == expected
    finally:
        torch.set_num_threads(before)
    assert all(each.loss == round(each.loss, 6) for each in expected)


def test_identities_name_the_machine_only_where_its_digits_count(evaluator, monkeypatch):
    monkeypatch.setattr("quantenv.evaluation.post_training.numerics", lambda: ("another torch", "another CPU"))
    task = evaluator.task
    assert PTQEvaluator(task).identity == evaluator.identity
    assert evaluator.exact
    floats = PTQEvaluator(task, "float")
    monkeypatch.undo()
    assert PTQEvaluator(task, "float").identity != floats.identity
    assert not floats.exact


def test_codebooks_are_simulated_with_a_line_in_the_log(caplog):
    task = dataclasses.replace(get_task("digits"), scheme="k-means")
    with caplog.at_level("INFO"):
        assert PTQEvaluator(task).backend == "float"
    assert "codebooks of k-means" in caplog.text
    with pytest.raises(QuantenvError, match="codebooks of k-means"):
        make_evaluator("ptq-integer", task)
    with pytest.raises(QuantenvError, match="Did you mean 'integer'"):
        PTQEvaluator(get_task("digits"), "interger")


def test_a_batch_that_shares_prefixes_equals_one_by_one(evaluator):
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(1, 9, (100, 8), generator=rng)
    bits[:, :5] = bits[:3, :5].repeat(34, 1)[:100]
    allocations = [Allocation.make(evaluator.layers, row.tolist()) for row in bits]
    together = evaluator.evaluate(allocations + allocations[:2])
    assert together[:100] == [evaluator.evaluate([allocation])[0] for allocation in allocations]
    assert together[100:] == together[:2]


EVALUATORS = ("ptq-float", "finetune", "finetune-haq", "finetune-haq-train")


@pytest.mark.parametrize("name", EVALUATORS)
def test_what_is_no_list_of_allocations_or_no_split_is_refused(name):
    task = get_task("digits")
    evaluator = make_evaluator(name, task)
    allocation = Allocation.make(task.layers, 8, 8)
    with pytest.raises(QuantenvError, match=r"Unknown split of task 'digits': 'tset'\. Did you mean 'test'"):
        evaluator.evaluate([allocation], "tset")
    with pytest.raises(AllocationError, match=r"give a list, such as \[allocation\]"):
        evaluator.evaluate(allocation)
    with pytest.raises(AllocationError, match=r"\[8, 8\] is no allocation; make one of bits"):
        evaluator.evaluate([[8, 8]])
