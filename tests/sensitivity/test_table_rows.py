import subprocess
import sys

import numpy as np
import pytest

from quantenv.core.errors import QuantenvError
from quantenv.sensitivity import kinds, measure
from tests.synthetic import AdditiveEvaluator, synthetic_layers
from tests.synthetic_table import BITS, synthetic_table

OFFERED = np.array(BITS) - 1


def test_loss_is_the_harm_that_the_table_was_made_of():
    table = synthetic_table(5)
    harm = AdditiveEvaluator(synthetic_layers(5)).harm[:, :, 7]
    found = measure(table)
    assert (found.kind, found.evaluations) == ("loss", 5 * 2 + 1)
    np.testing.assert_allclose(found.weights[:, OFFERED], (harm - harm[:, 7:])[:, OFFERED], rtol=1e-4, atol=1e-6)
    assert np.isnan(np.delete(found.weights, OFFERED, axis=1)).all()
    assert (found.activations[:, 7] == 0).all()
    assert np.isnan(found.activations[:, :7]).all()


def test_accuracy_is_the_drop_in_correct_samples():
    table = synthetic_table(4, samples=500)
    found = measure(table, "accuracy")
    correct = table.correct["search"].reshape(3, 3, 3, 3).astype(float)
    for layer in range(4):
        row = [2] * 4
        for option, bits in enumerate(BITS):
            row[layer] = option
            expected = (correct[2, 2, 2, 2] - correct[tuple(row)]) / 500
            assert found.weights[layer, bits - 1] == pytest.approx(expected)


def test_tied_layers_share_their_harm_evenly():
    table = synthetic_table(5, groups=[[0, 3], [1], [2, 4]])
    found = measure(table)
    np.testing.assert_array_equal(found.weights[0], found.weights[3])
    loss = table.loss["search"].astype(float).reshape(3, 3, 3)
    assert found.weights[[2, 4], 1].sum() == pytest.approx(loss[2, 2, 0] - loss[2, 2, 2])
    bits = np.array([table.allocation(row).bits for row in range(table.rows)])
    np.testing.assert_allclose(found.total(bits), loss.ravel() - loss[2, 2, 2], atol=1e-5)  # the task is additive


def test_without_8_bits_the_most_bits_are_the_base():
    found = measure(synthetic_table(3, bits=(3, 5)))
    assert (found.weights[:, 4] == 0).all()
    assert np.isnan(found.weights[:, 7]).all()


def test_the_identity_follows_table_and_kind():
    identities = [
        measure(table, kind).identity for table in (synthetic_table(3), synthetic_table(4)) for kind in kinds(table)
    ]
    assert len(set(identities)) == 4
    assert measure(synthetic_table(3)).identity == identities[0]


def test_mistakes_are_said():
    with pytest.raises(QuantenvError, match="no network to measure the sensitivity 'kl' on; its rows tell loss and"):
        measure(synthetic_table(3), "kl")
    with pytest.raises(QuantenvError, match="Did you mean 'loss'"):
        measure(synthetic_table(3), "los")


def test_tables_need_no_torch():
    program = """
import sys
from quantenv.evaluation.table.shipped import get_table
from quantenv.sensitivity import kinds, measure
table = get_table("digits_table")
assert [measure(table, kind).kind for kind in kinds(table)] == ["loss", "accuracy"]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
