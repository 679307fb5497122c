import itertools

import numpy as np
import pytest

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate.enumeration import enumerate_task
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.tasks import get_task

GROUPS = [["stem", "block1.depthwise", "block1.pointwise"], ["block2.depthwise", "block2.pointwise"]]
SENSITIVITY = np.arange(8.0)
GROUPS += [["block3.depthwise", "block3.pointwise", "classifier"]]


@pytest.fixture(scope="module")
def table():
    return enumerate_task(
        get_task("digits"), "small", SENSITIVITY, bits=(8, 3), tied=GROUPS, provenance={"command": "none"}
    )


def test_every_row_equals_a_live_evaluation(table):
    evaluator = PTQEvaluator(get_task("digits"))
    assert table.rows == 8
    for heads in itertools.product((3, 8), repeat=3):
        weights = np.repeat(heads, [3, 2, 3]).tolist()
        allocation = Allocation.make(evaluator.layers, weights, 8)
        row = table.index(allocation)
        for split in ("search", "test"):
            (live,) = evaluator.evaluate([allocation], split)
            assert table.correct[split][row] == live.correct
            assert table.loss[split][row] == np.float32(live.loss)


def test_it_says_what_it_is(table):
    evaluator = PTQEvaluator(get_task("digits"))
    assert table.evaluator_identity == evaluator.identity
    assert table.bits == (3, 8)
    assert table.groups == tuple(map(tuple, GROUPS))
    assert table.reference["test"] == evaluator.float_evaluation("test")
    assert table.sensitivity.tolist() == SENSITIVITY.tolist()
    assert table.provenance == {"command": "none", "backend": evaluator.backend}


def test_worker_processes_change_nothing(table):
    parallel = enumerate_task(
        get_task("digits"), "small", SENSITIVITY, bits=(3, 8), tied=GROUPS, workers=2, provenance={"command": "none"}
    )
    assert parallel.hash == table.hash


def test_progress_reaches_the_end():
    seen = []
    enumerate_task(
        get_task("digits"),
        "t",
        SENSITIVITY,
        (4, 8),
        [[n for g in GROUPS for n in g]],
        progress=lambda d, r: seen.append((d, r)),
    )
    assert seen[-1] == (2, 2)


def test_too_many_rows_are_refused():
    with pytest.raises(QuantenvError, match="16,777,216 allocations"):
        enumerate_task(get_task("digits"), "t", SENSITIVITY, bits=range(1, 9))
