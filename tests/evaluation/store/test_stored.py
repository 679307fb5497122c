import importlib
import pickle
import signal

import gymnasium
import numpy as np
import pytest

import quantenv  # noqa: F401 - registers the ids
from experiments.studies import bench_store
from quantenv.core.activations import chain
from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.store.store import EvaluationStore, StoreConflictError
from quantenv.evaluation.store.stored import StoredEvaluator, through_store
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


stored_module = importlib.import_module("quantenv.evaluation.store.stored")


def through(evaluator, location, **rest):
    return StoredEvaluator(evaluator, EvaluationStore(location), **rest)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1000.0])
def test_results_are_those_of_the_bare_evaluator_to_the_bit(location, seconds):
    bare, inner = AdditiveEvaluator(), AdditiveEvaluator()
    stored = through(inner, location, seconds=seconds)
    batch = allocations(bare) * 2
    assert stored.evaluate(batch) == stored.evaluate(batch) == bare.evaluate(batch)
    assert inner.calls == 30
    assert (stored.layers, stored.reference, stored.identity) == (inner.layers, inner.reference, inner.identity)
    assert stored.activations is None  # an evaluator that knows layers only
    inner.activations = chain(inner.layers)
    assert stored.activations is inner.activations
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


class Timed(AdditiveEvaluator):
    """Takes so many seconds of a pretended clock for an evaluation, and notes how many it gets at once."""

    def __init__(self, monkeypatch, seconds):
        super().__init__()
        self.seconds, self.now, self.sizes = seconds, 0.0, []
        monkeypatch.setattr(stored_module.time, "perf_counter", lambda: self.now)

    def evaluate(self, allocations, split="search"):
        self.sizes.append(len(allocations))
        self.now += self.seconds * len(allocations)
        return super().evaluate(allocations, split)


def test_what_is_missing_is_computed_in_batches(location, monkeypatch):
    inner = Timed(monkeypatch, 2**-7)
    stored = through(inner, location)
    batch = allocations(inner, 128)
    for start in range(0, 128, 32):
        stored.evaluate(batch[start : start + 32])
    assert inner.sizes == [1, 31, 32, 32, 32]
    stored.evaluate(allocations(inner, 1000, seed=1))
    assert inner.sizes[5:] == [256, 256, 256, 232]  # 2 seconds each
    stored.evaluate(batch, "test")
    assert inner.sizes[9:] == [1, 127]


def test_slow_evaluations_are_stored_one_by_one(location, monkeypatch):
    inner = Timed(monkeypatch, 1.5)
    through(inner, location).evaluate(allocations(inner, 5))
    assert inner.sizes == [1] * 5


def test_evaluations_that_become_slower_are_stored_sooner(location, monkeypatch):
    inner = Timed(monkeypatch, 0.1)
    stored = through(inner, location)
    stored.evaluate(allocations(inner, 21))
    inner.seconds = 0.5
    stored.evaluate(allocations(inner, 30, seed=1))
    assert inner.sizes == [1, 20, 20, 4, 4, 2]


def test_what_was_computed_before_a_failure_is_kept(location):
    class Failing(AdditiveEvaluator):
        def evaluate(self, allocations, split="search"):
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().evaluate(allocations, split)

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        through(failing, location, seconds=0.0).evaluate(allocations(failing))
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


def test_five_kills_lose_at_most_the_groups_in_flight(location):
    result = bench_store.survive_kills(location, kills=5, seed=1)
    assert (result.kills, result.completed_lost, result.evaluated_again, result.wrong) == (5, 0, 0, 0)
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
