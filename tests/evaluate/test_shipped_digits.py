"""The shipped table of digits against live evaluations of the network that it carries."""

import itertools

import numpy as np
import pytest
import torch

from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.evaluate.tables import get_table
from quantenv.quantize.integer import integer_obstacle
from quantenv.sensitivity import layer_sensitivity
from quantenv.tasks import Task
from quantenv.tasks.digits import SOURCE, DigitsNet, digits_splits


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
    backend = table.provenance["backend"] if integer_obstacle() is None else "float"
    found = layer_sensitivity(PTQEvaluator(task, backend), images=None)
    np.testing.assert_allclose(table.sensitivity, found, rtol=0.05, atol=1e-4)


def test_random_rows_equal_live_evaluations(table, task):
    backend = table.provenance["backend"]
    exact = backend == "float" or integer_obstacle() is None
    evaluator = PTQEvaluator(task, backend if exact else "float")
    rows = np.random.default_rng(0).choice(table.rows, 150, replace=False)
    for split in ("search", "test"):
        live = evaluator.evaluate([table.allocation(int(row)) for row in rows], split)
        counts = np.array([evaluation.correct for evaluation in live])
        if exact:
            assert (counts == table.correct[split][rows]).all()
            # Losses are sums of floats, whose last digits differ from one make of CPU to another.
            losses = np.array([evaluation.loss for evaluation in live])
            np.testing.assert_allclose(losses, table.loss[split][rows], rtol=1e-4, atol=1e-5)
        else:  # a CPU without int8 kernels: rounding ties may fall differently
            difference = np.abs(counts.astype(int) - table.correct[split][rows])
            assert difference.mean() < 0.01 * table.reference[split].samples


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
