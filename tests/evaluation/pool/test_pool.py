import copy
import dataclasses
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.evaluation import make_evaluator, make_pool
from quantenv.evaluation.pool.pool import PoolEvaluator, ProcessWorkers, cut, without_training
from quantenv.evaluation.pool.workers import start_workers, threads_each
from quantenv.evaluation.store.store import EvaluationStore
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.graph.activations import find_activations
from quantenv.tasks import get_task
from tests.evaluation.fragile import (
    additive,
    batch,
    deaths,
    dies,
    evaluations,
    fragile,
    one_of_a_kind,
    stored_fragile,
    threads_of,
)
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def digits():
    with make_pool("ptq", get_task("digits"), "off", workers=2) as pool:
        yield pool


def started(folder, count=2, **settings):
    return ProcessWorkers(partial(fragile, folder=str(folder), **settings), count, 1)


# On a real task ---------------------------------------------------------------------------------------------


def test_a_pool_gives_what_one_evaluator_gives_to_the_bit(digits):
    serial = make_evaluator("ptq", get_task("digits"), "off")
    assert (digits.identity, digits.layers, digits.reference) == (serial.identity, serial.layers, serial.reference)
    assert digits.activations == serial.activations == find_activations(serial.task.network, torch.zeros(1, 1, 8, 8))
    shuffled = batch(digits.layers, 30) * 2
    np.random.default_rng(0).shuffle(shuffled)
    for split in ("search", "test"):
        assert digits.evaluate(shuffled, split) == serial.evaluate(shuffled, split)
    assert digits.evaluate(shuffled[:1]) == serial.evaluate(shuffled[:1])
    assert digits.evaluate([]) == []


def test_layers_in_another_order_are_the_same_allocation(digits):
    (plain,) = batch(digits.layers, 1)
    turned = Allocation(plain.names[::-1], plain.weight_bits[::-1], plain.activation_bits[::-1])
    left, right = digits.evaluate([plain, turned])
    assert left == right
    with pytest.raises(AllocationError, match="does not fit"):
        digits.evaluate([Allocation.make(digits.layers[:2], 8)])


def test_workers_share_the_cores_out(digits):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert digits.workers.threads == threads_each(2) == max(1, cores // 2)
    assert threads_each(10_000) == 1


@pytest.mark.parametrize("early", [False, True])  # whether torch is there before threads are pinned
def test_threads_are_pinned(early):
    with ProcessWorkers(partial(additive, early and torch.tensor(0)), 1, threads=3) as workers:
        ((process, *threads),) = set(workers.map(threads_of, [()]))
    assert threads[1:] == ["3", "3", "3"]
    assert threads[0] == 3 if early else 1 <= threads[0] <= 3  # MKL takes no more from the environment than cores
    assert process != os.getpid()


def test_the_training_split_stays_at_home():
    task = get_task("digits")
    task = dataclasses.replace(task, network=copy.deepcopy(task.network))  # others may have shared the registered one
    lean = pickle.loads(pickle.dumps(without_training(task)))
    assert set(lean.splits) == {"calibration", "search", "test"}
    assert (lean.identity, lean.layers) == (task.identity, task.layers)
    assert "train" in task.splits
    assert not any(p.is_shared() for p in task.network.parameters())


# Workers that die, fail or are stopped ----------------------------------------------------------------------


def test_a_dead_worker_is_replaced_and_its_piece_tried_again(tmp_path, caplog):
    plain = AdditiveEvaluator()
    wanted = batch(plain.layers, poisoned=[3])
    with PoolEvaluator(started(tmp_path, deaths=2)) as pool, caplog.at_level(logging.WARNING):
        assert pool.evaluate(wanted) == plain.evaluate(wanted)
        assert pool.evaluate(wanted[:3]) == plain.evaluate(wanted[:3])
    assert deaths(tmp_path) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert [line[-len("attempt 2 of 3.") :] for line in lines] == ["attempt 2 of 3.", "attempt 3 of 3."]


def test_a_piece_that_kills_every_worker_is_given_up(tmp_path):
    wanted = batch(AdditiveEvaluator().layers, poisoned=[0])
    gives_up = pytest.raises(QuantenvError, match="Workers died 3 times over the same evaluations")
    with PoolEvaluator(started(tmp_path, deaths=99)) as pool, gives_up:
        pool.evaluate(wanted)
    assert deaths(tmp_path) == 3


def test_what_a_worker_finished_before_it_died_is_stored_and_never_computed_again(tmp_path):
    location = str(tmp_path / "evaluations.sqlite")
    store = EvaluationStore(location)
    wanted = sorted(batch(AdditiveEvaluator().layers), key=lambda a: a.bits)
    fatal = max(wanted, key=lambda a: a.bits)
    first = Allocation(fatal.names, (1, *fatal.weight_bits[1:]), fatal.activation_bits)  # sorted to the front
    make = partial(stored_fragile, folder=str(tmp_path), deaths=1, location=location)
    with PoolEvaluator(ProcessWorkers(make, 1, 1), store) as pool:
        results = pool.evaluate([*wanted, first])
        assert results == AdditiveEvaluator().evaluate([*wanted, first])
        assert (deaths(tmp_path), evaluations(tmp_path)) == (1, 41)
        assert store.count() == 41
        assert pool.evaluate(wanted) == results[:-1]
    assert evaluations(tmp_path) == 41


def test_errors_keep_their_kind_and_message_and_the_workers_live_on(tmp_path):
    wanted = batch(AdditiveEvaluator().layers, poisoned=[7])
    with PoolEvaluator(started(tmp_path, error=QuantenvError("the disk is full"))) as pool:
        with pytest.raises(QuantenvError, match=r"^the disk is full$"):
            pool.evaluate(wanted)
        assert pool.evaluate(wanted[:7]) == AdditiveEvaluator().evaluate(wanted[:7])


def test_an_error_while_starting_is_raised(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        started(tmp_path, nonsense=1)


def test_a_worker_that_cannot_start_is_an_error_at_once():
    with pytest.raises(QuantenvError, match="died while it was starting"):
        ProcessWorkers(dies, 1)


def test_workers_that_measure_different_things_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match="Two workers measure different things"):
        ProcessWorkers(one_of_a_kind, 2)


def run_script(tmp_path, body):
    script = tmp_path / "script.py"
    script.write_text(body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


BUSY = """
import signal, sys
from functools import partial
from quantenv.evaluation.pool.pool import PoolEvaluator, ProcessWorkers
from tests.evaluation.fragile import batch, fragile
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start behind `&` ignore it
    with PoolEvaluator(ProcessWorkers(partial(fragile, folder={folder!r}, pause=0.01), 2, 1)) as pool:
        pool.evaluate(batch(pool.layers, 20000))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_pool(tmp_path, number):
    process = run_script(tmp_path, BUSY.format(folder=str(tmp_path)))
    while evaluations(tmp_path) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    # Workers hold the same pipes: they end only when the last of them is gone.
    _, error = process.communicate(timeout=20)
    assert process.returncode == -number, error
    before = evaluations(tmp_path)
    time.sleep(0.1)
    assert evaluations(tmp_path) == before < 20000


def test_an_unguarded_script_is_told_what_to_do(tmp_path):
    process = run_script(tmp_path, BUSY.replace("if __name__", "if True or __name__").format(folder=str(tmp_path)))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'under `if __name__ == "__main__":`' in error


def test_a_closed_pool_says_so(tmp_path):
    pool = PoolEvaluator(started(tmp_path, 1))
    pool.close()
    pool.close()
    with pytest.raises(QuantenvError, match="were closed"):
        pool.evaluate(batch(pool.layers, 1))


# Arguments --------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 20))
def test_pieces_are_contiguous_and_of_equal_length(length, pieces):
    items = list(range(length))
    result = cut(items, pieces)
    assert list(itertools.chain(*result)) == items
    sizes = [len(piece) for piece in result]
    assert len(sizes) == min(length, pieces)
    assert not sizes or max(sizes) - min(sizes) <= 1 <= min(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"pool": "proceses"}, "Did you mean 'processes'"),
        ({"address": "auto"}, "choose pool 'ray'"),
        ({"name": "ptk"}, "Did you mean 'ptq'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(QuantenvError, match=message):
        make_pool(**{"name": "ptq", "task": get_task("digits"), "store": "off", **arguments})


def test_tables_need_no_workers():
    table = synthetic_table()
    assert isinstance(table, EvaluationTable)
    with pytest.raises(QuantenvError, match="looked up in table"):
        make_pool("ptq", table)


def test_what_cannot_be_sent_is_said():
    class Local(nn.Module):
        pass

    with pytest.raises(QuantenvError, match="cannot be sent to other processes"):
        start_workers(partial(fragile, network=Local()), 1)
