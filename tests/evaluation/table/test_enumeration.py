import dataclasses
import itertools

import numpy as np
import pytest

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.table import enumeration
from quantenv.evaluation.table.enumeration import enumerate_task
from quantenv.evaluation.table.row_blocks import RowBlocks
from quantenv.tasks import Split, get_task

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
            assert table.loss[split][row] == live.loss


def test_it_says_what_it_is(table):
    evaluator = PTQEvaluator(get_task("digits"))
    assert table.evaluator_identity == evaluator.identity
    assert table.bits == (3, 8)
    assert table.groups == tuple(map(tuple, GROUPS))
    assert table.reference["test"] == evaluator.float_evaluation("test")
    assert table.sensitivity.tolist() == SENSITIVITY.tolist()
    assert table.provenance == {"command": "none", "backend": evaluator.backend}


def test_progress_goes_from_nothing_to_the_end():
    seen = []
    enumerate_task(
        get_task("digits"),
        "t",
        SENSITIVITY,
        (4, 8),
        [[n for g in GROUPS for n in g]],
        progress=lambda d, r: seen.append((d, r)),
    )
    assert seen == [(0, 2), (2, 2)]


def resumed(blocks, seen=None, **changes):
    """Enumerates what `table` holds, in blocks of two rows."""
    arguments = {"bits": (3, 8), "tied": GROUPS, "provenance": {"command": "none"}, "blocks": blocks, **changes}
    progress = None if seen is None else lambda done, rows: seen.append(done)
    return enumerate_task(
        get_task("digits"), "small", SENSITIVITY, **arguments, **({} if progress is None else {"progress": progress})
    )


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(enumeration, "BLOCK", 2)


def test_worker_processes_and_an_interrupt_change_nothing(table, small_blocks, monkeypatch, tmp_path):
    blocks = RowBlocks(tmp_path / "rows")

    def interrupted(done, rows):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumed(blocks, workers=2, progress=interrupted)
    assert len(list(blocks.folder.iterdir())) == 3
    evaluated = []
    ours = PTQEvaluator.evaluate
    monkeypatch.setattr(PTQEvaluator, "evaluate", lambda *a: evaluated.append(a[2:]) or ours(*a))
    seen = []
    assert resumed(blocks, seen).hash == table.hash
    assert seen == [6, 8]
    assert evaluated == [("search",), ("test",)]
    assert resumed(blocks, seen := [], workers=2).hash == table.hash  # all are kept: no worker has anything to do
    assert seen == [8]
    blocks.remove()
    assert not blocks.folder.exists()
    blocks.remove()


@pytest.mark.parametrize(
    "changes", [{"bits": (4, 8)}, {"activation_bits": 6}, {"tied": [*GROUPS[:2], *[[n] for n in GROUPS[2]]]}]
)
def test_rows_of_other_settings_are_not_mixed(small_blocks, tmp_path, changes):
    blocks = RowBlocks(tmp_path / "rows")
    resumed(blocks)
    assert resumed(blocks, seen := [], **changes).hash == resumed(None, **changes).hash
    assert seen[0] == 0
    assert resumed(blocks, seen := []).rows == 8
    assert seen == [8]


def test_rows_of_another_network_are_not_mixed(small_blocks, tmp_path):
    blocks = RowBlocks(tmp_path / "rows")
    resumed(blocks)
    task = get_task("digits")
    fewer = Split(task.split("test").inputs[1:], task.split("test").labels[1:])
    other = dataclasses.replace(task, splits={**task.splits, "test": fewer})
    seen = []
    enumerate_task(other, "t", SENSITIVITY, (3, 8), GROUPS, blocks=blocks, progress=lambda *a: seen.append(a))
    assert seen[0] == (0, 8)


def test_damaged_blocks_are_evaluated_again(table, small_blocks, tmp_path, caplog):
    blocks = RowBlocks(tmp_path / "rows")
    resumed(blocks)
    first, second, third, fourth = sorted(blocks.folder.iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    third.write_bytes(second.read_bytes())  # other rows
    with np.load(fourth) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez_compressed(fourth, **{**arrays, "correct_search": arrays["correct_search"] - 1})
    assert resumed(blocks, seen := []).hash == table.hash
    assert seen == [2, 4, 6, 8]
    assert len(caplog.records) == 3
    assert all("evaluated again" in record.message for record in caplog.records)


def test_a_loss_that_no_table_holds_is_said_of_its_first_row(monkeypatch):
    def huge(evaluator, allocations, split):
        return [Evaluation(1, 200, 5000.0 if allocation.weight_bits[0] == 8 else 1.0) for allocation in allocations]

    monkeypatch.setattr(PTQEvaluator, "evaluate", huge)
    with pytest.raises(QuantenvError, match=r"Row 4 has a loss of 5000\.0 nats on the search split"):
        resumed(None)


def test_too_many_rows_are_refused():
    with pytest.raises(QuantenvError, match="16,777,216 allocations"):
        enumerate_task(get_task("digits"), "t", SENSITIVITY, bits=range(1, 9))
