import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.sensitivity import layer_sensitivity
from quantenv.tasks import get_task


@pytest.mark.parametrize("images", [None, 100])
def test_it_is_the_kl_divergence_that_scipy_computes(images):
    task = get_task("digits")
    network = QuantizedNetwork(calibrate_task(task))
    inputs = task.splits["search"].inputs[:images]

    def probabilities(weight_bits):
        network.select(Allocation.make(task.layers, weight_bits))
        return softmax(network(inputs).numpy().astype(np.float64), axis=1)

    reference = probabilities(8)
    expected = [
        rel_entr(reference, probabilities([3 if i == layer else 8 for i in range(8)])).sum(axis=1).mean()
        for layer in range(8)
    ]
    np.testing.assert_allclose(layer_sensitivity(PTQEvaluator(task, "float"), images), expected, rtol=1e-5, atol=1e-9)


def test_it_is_measured_once_and_cannot_be_changed():
    evaluator = PTQEvaluator(get_task("digits"))
    first = layer_sensitivity(evaluator)
    assert first is layer_sensitivity(evaluator)
    assert not first.flags.writeable
    assert (first >= 0).all()
    assert first.max() > 10 * first.min()


def test_global_random_state_is_untouched():
    evaluator = PTQEvaluator(get_task("digits"))
    state = torch.get_rng_state()
    layer_sensitivity.__wrapped__(evaluator)
    assert torch.equal(torch.get_rng_state(), state)
