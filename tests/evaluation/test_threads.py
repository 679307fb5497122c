"""Evaluators, networks and tasks that threads share, under load: numbers are those of one thread alone."""

import dataclasses
import itertools
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch

import quantenv  # noqa: F401 - registers the ids
from quantenv import tasks
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.locks import Lock
from quantenv.evaluation import make_evaluator, make_pool
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.store.store import EvaluationStore
from quantenv.evaluation.store.stored import StoredEvaluator
from quantenv.graph.layers import describe
from quantenv.graph.tracing import trace
from quantenv.quantization.calibrating import calibrate
from quantenv.tasks import Split, Task, get_task
from quantenv.tasks.digits import DigitsNet
from quantenv.training import FinetuneConfig, FinetuneEvaluator
from quantenv.training.haq import HAQFinetuneEvaluator
from tests.networks import branched

THREADS = 4
INPUTS = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def switching_often():
    """Threads take turns every 50 microseconds, a hundred times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def small(task, samples=16, **changes):
    splits = {name: Split(split.inputs[:samples], split.labels[:samples]) for name, split in task.splits.items()}
    return dataclasses.replace(task, splits=splits, **changes)


def at_once(work, count=THREADS):
    """Runs work(0), work(1), ... in threads that start together; returns what they return."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def drawn(layers, count, seed=0):
    rng = np.random.default_rng(seed)
    return [Allocation.make(layers, *rng.integers(1, 9, (2, len(layers))).tolist()) for _ in range(count)]


def wrong(evaluator, allocations, expected, batch):
    """Has every thread evaluate all allocations in an order of its own; returns how many numbers differ."""

    def work(number):
        order = np.random.default_rng(number).permutation(len(allocations))
        differences = 0
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            found = evaluator.evaluate([allocations[index] for index in part])
            differences += sum(one != expected[index] for one, index in zip(found, part, strict=True))
        return differences

    return sum(at_once(work))


@pytest.mark.parametrize("scheme", ["linear", "k-means", "linear+bias+batch-norm"])
def test_one_evaluator_gives_each_thread_the_numbers_of_one_alone(scheme):
    task = small(get_task("digits"), scheme=scheme)
    backend = "float" if scheme == "k-means" else "auto"
    allocations = drawn(task.layers, 100 if scheme == "linear" else 20)
    expected = PTQEvaluator(task, backend).evaluate(allocations)
    shared = PTQEvaluator(task, backend)  # whose weights of few bits are yet to be made
    assert wrong(shared, allocations, expected, 3) == 0


def test_the_store_holds_no_wrong_row_after_hundreds_of_evaluations_of_four_threads(tmp_path):
    task = small(get_task("digits"))
    allocations = drawn(task.layers, 100, seed=1)
    expected = PTQEvaluator(task, "float").evaluate(allocations)
    location = str(tmp_path / "evaluations.sqlite")
    stored = StoredEvaluator(PTQEvaluator(task, "float"), EvaluationStore(location))
    assert wrong(stored, allocations, expected, 5) == 0
    rows = {record.bits: record.evaluation for record in EvaluationStore(location).records(stored.identity)}
    assert rows == {allocation.bits: one for allocation, one in zip(allocations, expected, strict=True)}


def test_fine_tuning_is_shared_as_well():
    task = small(get_task("digits"), 32)
    config = FinetuneConfig(epochs=1, batch_size=16, compile="never")
    for evaluator in (FinetuneEvaluator(task, config), HAQFinetuneEvaluator(task)):
        allocations = drawn(task.layers, 1)
        assert wrong(evaluator, allocations, evaluator.evaluate(allocations), 1) == 0


def test_workers_are_shared_as_well():
    task = small(get_task("digits"))
    allocations = drawn(task.layers, 12)
    expected = PTQEvaluator(task, "float").evaluate(allocations)
    with make_pool("ptq-float", task, "off", workers=1, threads=1) as pool:
        assert wrong(pool, allocations, expected, 3) == 0


def test_environments_in_threads_share_an_evaluator():
    evaluator = make_evaluator("ptq-float", small(get_task("digits")), "off")

    def play(number):
        env = gymnasium.make("quantenv/Digits-v0", evaluator=evaluator, sensitivity=np.ones(8))
        rng, results = np.random.default_rng(number), []
        env.reset(seed=number)
        for _ in range(5):
            ended = False
            while not ended:
                mask = env.unwrapped.action_masks()
                _, _, ended, _, info = env.step(int(rng.choice(np.flatnonzero(mask))))
            results.append((tuple(map(tuple, info["bits"].tolist())), info["loss"]))
            env.reset()
        return results

    alone = make_evaluator("ptq-float", evaluator.task, "off")
    for bits, loss in itertools.chain(*at_once(play)):
        allocation = Allocation.make(alone.layers, [w for w, _ in bits], [a for _, a in bits])
        assert alone.evaluate([allocation])[0].loss == loss


def test_who_selects_in_one_thread_and_calls_in_another_is_refused():
    calibration = calibrate(branched(), INPUTS)
    network = QuantizedNetwork(calibration)
    network.select(Allocation.make(calibration.layers, 2, 8))
    expected = network(INPUTS[:4])
    with ThreadPoolExecutor(1) as other:
        other.submit(network.select, Allocation.make(calibration.layers, 8, 8)).result()
        with pytest.raises(QuantenvError, match="selected by another thread"):
            network(INPUTS[:4])
    network.select(Allocation.make(calibration.layers, 2, 8))
    assert torch.equal(network(INPUTS[:4]), expected)


def test_networks_are_prepared_in_one_thread_while_others_run_them():
    network, expected = branched(), describe(branched(), INPUTS[:2])
    reference = branched()(INPUTS)

    def work(number):
        for _ in range(6):
            if number % 2:
                assert torch.equal(network(INPUTS), reference)
            else:
                assert describe(network, INPUTS[:2]) == expected
                assert torch.allclose(trace(network)(INPUTS), reference, atol=1e-4)
        return True

    assert all(at_once(work))
    assert torch.equal(branched()(INPUTS), reference)  # torch.fx has put all back


def test_a_task_is_made_once(monkeypatch):
    made = []

    def make():
        time.sleep(0.02)
        made.append(Task("slow", DigitsNet(), get_task("digits").splits))
        return made[-1]

    monkeypatch.setattr("quantenv.tasks.digits.make_slow", make, raising=False)
    monkeypatch.setitem(tasks._TASKS, "slow", tasks.Registered("quantenv.tasks.digits:make_slow", "slow"))
    assert at_once(lambda _: get_task("slow")) == [made[0]] * THREADS
    assert len(made) == 1


def test_a_copied_lock_is_free():
    with Lock() as lock:
        copy = pickle.loads(pickle.dumps(lock))
        with ThreadPoolExecutor(1) as other:
            other.submit(copy.__enter__).result(timeout=5)
