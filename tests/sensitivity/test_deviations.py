import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from quantenv.allocation import Allocation
from quantenv.quantize import QuantizedNetwork, calibrate_task
from quantenv.sensitivity.deviations import DEVIATIONS, OUTPUT_KINDS, Deviations, output_measures


def by_hand(logits, reference, labels):
    logits, reference = logits.astype(np.float64), reference.astype(np.float64)
    p, q = softmax(reference, axis=1), softmax(logits, axis=1)
    return [
        (logits.argmax(1) != labels).mean(),
        -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean(),
        rel_entr(p, q).sum(axis=1).mean(),
        ((logits - reference) ** 2).sum() / (reference**2).sum(),
    ]


@pytest.mark.parametrize("images", [None, 17])
def test_every_deviation_is_that_of_a_network_run_alone(task, images):
    network = QuantizedNetwork(calibrate_task(task))
    search = task.splits["search"]
    inputs, labels = search.inputs[:images], search.labels[:images].numpy()
    with torch.inference_mode():
        reference = task.network(inputs).numpy()

    def expected(weights, activations):
        network.select(Allocation.make(task.layers, weights, activations))
        return by_hand(network(inputs).numpy(), reference, labels)

    deviations = Deviations(task, images)
    np.testing.assert_allclose(deviations.base(), expected(8, 8), rtol=1e-4, atol=1e-6)
    for index in range(len(task.layers)):
        rows = deviations.layer(index)
        for position, bits in enumerate(DEVIATIONS):
            deviating = [bits if layer == index else 8 for layer in range(len(task.layers))]
            np.testing.assert_allclose(rows["weights"][position], expected(deviating, 8), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(rows["activations"][position], expected(8, deviating), rtol=1e-4, atol=1e-6)


def test_measures_of_equal_outputs_are_zero():
    logits = torch.randn(20, 4, dtype=torch.double)
    measures = dict(zip(OUTPUT_KINDS, output_measures(logits, logits, logits.argmax(1)), strict=True))
    assert measures["accuracy"] == measures["kl"] == measures["sqnr"] == 0.0
    assert measures["loss"] > 0


def test_the_divergence_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    position = OUTPUT_KINDS.index("kl")
    for scale in (1e-12, 1e-8, 1e-3, 1.0):
        logits = 5 * torch.randn(30, 6, generator=generator, dtype=torch.double)
        moved = logits + scale * torch.randn(30, 6, generator=generator, dtype=torch.double)
        assert output_measures(moved, logits, torch.zeros(30, dtype=torch.int64))[position] >= 0


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rounding_a_uniform_signal_has_the_textbook_sqnr(bits):
    # Uniform in [-1, 1), step 2 / 2**bits: signal power 1/3, noise step**2 / 12, so 6.02 dB for each bit
    signal = 2 * torch.rand(20_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    step = 2 / 2**bits
    rounded = (torch.floor(signal / step) + 0.5) * step
    ratio = output_measures(rounded, signal, torch.zeros(20_000, dtype=torch.int64))[OUTPUT_KINDS.index("sqnr")]
    assert -10 * np.log10(ratio) == pytest.approx(20 * np.log10(2) * bits, abs=0.05)
