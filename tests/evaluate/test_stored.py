import pickle
import signal

import gymnasium
import numpy as np
import pytest

import quantenv  # noqa: F401 - registers the ids
from experiments import bench_store
from quantenv.allocation import Allocation
from quantenv.errors import AllocationError
from quantenv.evaluate import make_evaluator
from quantenv.evaluate.base import Evaluation
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.evaluate.store import EvaluationStore, StoreConflictError
from quantenv.evaluate.stored import StoredEvaluator, through_store
from quantenv.tasks import get_task
from tests.synthetic import AdditiveEvaluator, synthetic_layers


class SplitEvaluator(AdditiveEvaluator):
    """One sample fewer is right on every other split than search."""

    def evaluate(self, allocations, split="search"):
        results = super().evaluate(allocations, split)
        return [Evaluation(r.correct - (split != "search"), r.samples, r.loss) for r in results]


@pytest.fixture
def location(tmp_path):
    return str(tmp_path / "evaluations.sqlite")


def allocations(evaluator, count=30, seed=0):
    rng = np.random.default_rng(seed)
    layers = evaluator.layers
    return [Allocation.make(layers, *rng.integers(2, 9, (2, len(layers))).tolist()) for _ in range(count)]


def through(evaluator, location, **rest):
    return StoredEvaluator(evaluator, EvaluationStore(location), **rest)


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_results_are_those_of_the_bare_evaluator_to_the_bit(location, group):
    bare, inner = AdditiveEvaluator(), AdditiveEvaluator()
    stored = through(inner, location, group=group)
    batch = allocations(bare) * 2
    assert stored.evaluate(batch) == stored.evaluate(batch) == bare.evaluate(batch)
    assert inner.calls == 30
    assert (stored.layers, stored.reference, stored.identity) == (inner.layers, inner.reference, inner.identity)
    assert stored.evaluate([]) == []


def test_a_second_evaluator_computes_nothing_that_is_known(location):
    first, second = AdditiveEvaluator(), AdditiveEvaluator()
    batch = allocations(first)
    through(first, location).evaluate(batch[:20])
    assert through(second, location).evaluate(batch) == first.evaluate(batch)
    assert second.calls == 10


def test_other_identities_share_nothing(location):
    first, second = AdditiveEvaluator(), AdditiveEvaluator(seed=3)
    second.layers, second.identity = first.layers, "another"
    batch = allocations(first)
    through(first, location).evaluate(batch)
    assert through(second, location).evaluate(batch) == second.evaluate(batch)
    assert second.calls == 60


def test_splits_share_nothing(location):
    inner = SplitEvaluator()
    stored = through(inner, location)
    batch = allocations(inner, 5)
    search, test = stored.evaluate(batch), stored.evaluate(batch, "test")
    assert [a.correct - b.correct for a, b in zip(search, test, strict=True)] == [1] * 5
    assert (stored.evaluate(batch), stored.evaluate(batch, "test"), inner.calls) == (search, test, 10)


def test_layers_in_another_order_are_the_same_allocation(location):
    inner = AdditiveEvaluator()
    stored = through(inner, location)
    (plain,) = allocations(inner, 1)
    names, weights, activations = plain.names[::-1], plain.weight_bits[::-1], plain.activation_bits[::-1]
    assert stored.evaluate([plain, Allocation(names, weights, activations)]) == inner.evaluate([plain, plain])
    assert inner.calls == 3
    with pytest.raises(AllocationError, match="does not fit"):
        stored.evaluate([Allocation.make(synthetic_layers(2), 8)])


def test_what_was_computed_before_a_failure_is_kept(location):
    class Failing(AdditiveEvaluator):
        def evaluate(self, allocations, split="search"):
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().evaluate(allocations, split)

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        through(failing, location).evaluate(allocations(failing))
    assert EvaluationStore(location).count() == 4


def test_one_identity_with_two_values_is_an_error(location):
    left, right = AdditiveEvaluator(), AdditiveEvaluator()
    right.harm = right.harm / 2
    slow = through(left, location)
    batch = allocations(left, 1)

    class Overtaken(AdditiveEvaluator):
        def evaluate(self, allocations, split="search"):
            through(right, location).evaluate(batch)
            return super().evaluate(allocations, split)

    slow.evaluator = Overtaken()
    with pytest.raises(StoreConflictError, match="has two values"):
        slow.evaluate(batch)


def test_it_can_be_sent_to_another_process(location):
    stored = through(AdditiveEvaluator(), location, task="t")
    batch = allocations(stored)
    stored.evaluate(batch)
    copy = pickle.loads(pickle.dumps(stored))
    assert copy.evaluate(batch) == stored.evaluate(batch)
    assert copy.evaluator.calls == 30


def test_five_kills_lose_at_most_the_evaluations_in_flight(location):
    result = bench_store.survive_kills(location, kills=5, seed=1)
    assert (result.kills, result.completed_lost, result.evaluated_again, result.wrong) == (5, 0, 0, 0)
    assert result.in_flight_lost <= 5
    assert result.stored == result.begun - result.in_flight_lost > 0
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_two_processes_that_write_at_once_lose_and_duplicate_nothing(location):
    result = bench_store.survive_writers(location, evaluations=300, seed=1)
    assert (result.stored, result.wrong, result.failed) == (result.distinct, 0, 0)
    assert result.distinct == 450 <= result.begun <= 600


# Through the registered names ------------------------------------------------------------------------------


def test_by_default_the_users_store_answers(location, monkeypatch):
    monkeypatch.setenv("QUANTENV_STORE", location)
    task = get_task("digits")
    stored = make_evaluator("ptq", task)
    assert isinstance(stored, StoredEvaluator)
    batch = allocations(stored, 6)
    bare = make_evaluator("ptq", task, "off")
    assert isinstance(bare, PTQEvaluator)
    for split in ("search", "test"):
        assert stored.evaluate(batch, split) == stored.evaluate(batch, split) == bare.evaluate(batch, split)
    (search, test) = EvaluationStore(location).summaries()
    assert (search.task, search.split, search.rows, search.identity) == ("digits", "search", 6, bare.identity)
    assert (test.split, test.rows) == ("test", 6)


def test_an_open_store_or_a_location_can_be_given(location):
    inner = AdditiveEvaluator()
    store = EvaluationStore(location)
    assert through_store(inner, store).store is store
    assert through_store(inner, location, "t").store.name == location
    assert through_store(inner, "off") is inner


def play(env, episodes):
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(episodes):
        _, info = env.reset()
        terminated = False
        while not terminated:
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            _, reward, terminated, _, info = env.step(action)
        ends.append((reward, info["accuracy"], info["loss"], info["evaluations"], info["bits"].tolist()))
    return ends


def test_an_environment_counts_and_rewards_as_without_a_store(location, monkeypatch):
    off = play(gymnasium.make("quantenv/Digits-v0"), 5)  # the tests' store is off
    fresh = play(gymnasium.make("quantenv/Digits-v0", store=location), 5)

    def fail(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(PTQEvaluator, "evaluate", fail)
    again = play(gymnasium.make("quantenv/Digits-v0", store=location), 5)
    assert off == fresh == again
    assert [end[3] for end in again] == [1, 2, 3, 4, 5]
