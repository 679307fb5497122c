"""The shipped table of digits against live evaluations of the network that it carries."""

import itertools

import numpy as np
import pytest
import torch

from quantenv.evaluation import make_evaluator
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.table.shipped import get_table
from quantenv.sensitivity import layer_sensitivity
from quantenv.tasks import Task, get_task
from quantenv.tasks.digits import SOURCE, DigitsNet, digits_splits
from tests.other_machines import FEW, answers, same_everywhere


@pytest.fixture(scope="module")
def table():
    return get_table("digits_table")


@pytest.fixture(scope="module")
def task(table):
    network = DigitsNet()
    network.load_state_dict({key: torch.tensor(array) for key, array in table.weights.items()})
    return Task("digits", network, digits_splits(), source=SOURCE)


def test_it_holds_every_allocation_of_the_network_it_carries(table, task):
    assert table.rows == 4**8
    assert table.groups == tuple((layer.name,) for layer in task.layers)
    assert table.task_identity == task.identity
    assert table.layers == task.layers
    assert table.evaluator_identity == PTQEvaluator(task).identity  # whatever machine made it
    found = layer_sensitivity(PTQEvaluator(task), images=None)
    np.testing.assert_allclose(table.sensitivity, found, rtol=0.05, atol=1e-4)


SPLITS = ("search", "test")


def live_rows(rows, batch, splits=SPLITS, evaluator=None):
    """Counts and losses of some rows by live evaluation, through no store."""
    table = get_table("digits_table")
    evaluator = evaluator or PTQEvaluator(get_task("digits"))
    evaluator.batch = batch
    allocations = [table.allocation(row) for row in rows]
    return {split: [[each.correct, each.loss] for each in evaluator.evaluate(allocations, split)] for split in splits}


def live_rows_by_batch(asked):
    """The same of other rows for each size of batches: [size, rows, splits], ..."""
    evaluator = PTQEvaluator(get_task("digits"))
    return [live_rows(rows, batch, splits, evaluator) for batch, rows, splits in asked]


def table_rows(table, rows, splits=SPLITS):
    """The same as the table has them."""
    found = {split: [table.evaluation(row, split) for row in rows] for split in splits}
    return {split: [[each.correct, each.loss] for each in evaluations] for split, evaluations in found.items()}


def test_random_rows_equal_live_evaluations(table):
    rows = np.random.default_rng(0).choice(table.rows, 150, replace=False).tolist()
    assert live_rows(rows, 450) == table_rows(table, rows)


#: Rows and splits that are evaluated in batches of each size: images one by one take long.
BATCHES = {1: (1, ["search"]), 64: (12, SPLITS), 500: (12, SPLITS)}


@pytest.fixture(scope="module")
def by_machine(table):
    """What is asked of machines for each size of batches, and what all of them answer."""
    asked = [
        [batch, np.random.default_rng(batch).choice(table.rows, count, replace=False).tolist(), splits]
        for batch, (count, splits) in BATCHES.items()
    ]
    said = same_everywhere(answers(live_rows_by_batch, machines=FEW, asked=asked)["live_rows_by_batch"])
    return {batch: (rows, splits, found) for (batch, rows, splits), found in zip(asked, said, strict=True)}


@pytest.mark.parametrize("batch", BATCHES)
def test_random_rows_equal_live_evaluations_on_every_machine(table, by_machine, batch):
    rows, splits, found = by_machine[batch]
    assert found == table_rows(table, rows, splits)


def test_random_rows_equal_what_a_store_gives_back(table, tmp_path):
    rows = np.random.default_rng(7).choice(table.rows, 40, replace=False).tolist()
    allocations = [table.allocation(row) for row in rows]
    for _ in range(2):  # computed, and from the store
        evaluator = make_evaluator("ptq", get_task("digits"), str(tmp_path / "store.sqlite"))
        for split, expected in table_rows(table, rows).items():
            assert [[each.correct, each.loss] for each in evaluator.evaluate(allocations, split)] == expected


def test_it_is_worth_searching(table):
    accuracy = table.correct["search"] / table.reference["search"].samples
    error = (accuracy.max() * (1 - accuracy.max()) / table.reference["search"].samples) ** 0.5
    bits = np.array(list(itertools.product(table.bits, repeat=len(table.layers))))
    params = np.array([layer.params for layer in table.layers])
    ratio = bits @ params / (8 * params.sum())
    best = [accuracy[ratio <= budget].max() for budget in (0.3, 0.4, 1.0)]
    assert best == sorted(best)
    assert best[0] < best[2] - 3 * error  # a budget costs accuracy
    assert np.median(accuracy[ratio <= 0.4]) < best[1] - 3 * error  # and within one, some do better than others
