import pytest

from experiments.runs.episodes import Episode
from experiments.runs.replay import RecordedEvaluator
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from tests.synthetic import AdditiveEvaluator


def test_recorded_allocations_are_looked_up_and_the_rest_computed_in_order():
    inner = AdditiveEvaluator()
    allocations = [Allocation.make(inner.layers, bits) for bits in (3, 4, 5, 6)]
    recorded = Episode(1, allocations[1].bits, 1, inner.samples, 9.0, 0.0, {"size": 1.0}, True)
    evaluator = RecordedEvaluator(inner, [recorded])
    results = evaluator.evaluate(allocations)
    assert inner.calls == 3
    assert (results[1].correct, results[1].loss) == (1, 9.0)
    fresh = AdditiveEvaluator().evaluate(allocations)
    assert [results[i] for i in (0, 2, 3)] == [fresh[i] for i in (0, 2, 3)]
    assert (evaluator.identity, evaluator.reference) == (inner.identity, inner.reference)


def test_the_record_is_of_the_search_split_only():
    inner = AdditiveEvaluator()
    allocation = Allocation.make(inner.layers, 4)
    recorded = Episode(1, allocation.bits, 1, inner.samples, 9.0, 0.0, {"size": 1.0}, True)
    (result,) = RecordedEvaluator(inner, [recorded]).evaluate([allocation], "test")
    assert result.correct > 1


def test_the_record_of_another_network_is_refused():
    inner = AdditiveEvaluator()
    recorded = Episode(1, ((4, 8),), 1, inner.samples, 9.0, 0.0, {"size": 1.0}, True)
    with pytest.raises(QuantenvError, match="1 layers"):
        RecordedEvaluator(inner, [recorded])
