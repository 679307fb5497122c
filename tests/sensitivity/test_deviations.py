import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.sensitivity.deviations import (
    OUTPUT_KINDS,
    TOGETHER,
    Deviation,
    Outputs,
    deviations,
    in_blocks,
    output_measures,
)
from quantenv.tasks import Split

BACKENDS = ("float", "integer")


def by_hand(logits, reference, labels):
    logits, reference = logits.astype(np.float64), reference.astype(np.float64)
    p, q = softmax(reference, axis=1), softmax(logits, axis=1)
    return [
        (logits.argmax(1) != labels).mean(),
        -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean(),
        rel_entr(p, q).sum(axis=1).mean(),
        ((logits - reference) ** 2).sum() / (reference**2).sum(),
    ]


def everything(task):
    return deviations(task.layers, np.ones((2, len(task.layers), 8), dtype=bool))


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

    outputs = Outputs(PTQEvaluator(task, "float"), images)
    np.testing.assert_allclose(outputs.base(), expected(8, 8), rtol=1e-4, atol=1e-6)
    wanted = everything(task)
    assert len(wanted) == 2 * 7 * len(task.layers)
    for deviation, found in zip(wanted, outputs.measure(wanted), strict=True):
        bits = [deviation.bits if layer in deviation.layers else 8 for layer in range(len(task.layers))]
        pair = (bits, 8) if deviation.part == "weights" else (8, bits)
        np.testing.assert_allclose(found, expected(*pair), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", ["linear", "linear+bias", "linear+batch-norm", "linear+equalisation+bias"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_harms_are_differences_of_the_evaluator_s_own_evaluations(task, scheme, backend):
    # Of the whole scheme, on the same backend: the images become another task's search split.
    task = dataclasses.replace(task, scheme=scheme)
    evaluator = PTQEvaluator(task, backend if backend == "float" else "auto")
    search = task.splits["search"]
    few = Split(search.inputs[:24], search.labels[:24])
    apart = PTQEvaluator(dataclasses.replace(task, splits={**task.splits, "search": few}), evaluator.backend)
    wanted = [each for each in everything(task) if each.bits in (2, 4)]
    outputs = Outputs(evaluator, 24)
    expected = apart.evaluate([each.allocation(task.layers) for each in wanted])
    (base,) = apart.evaluate([Allocation.make(task.layers, 8, 8)])
    assert outputs.base()[:2] == [1 - base.accuracy, pytest.approx(base.loss, abs=5.1e-7)]
    for found, evaluation in zip(outputs.measure(wanted), expected, strict=True):
        assert found[:2] == [pytest.approx(1 - evaluation.accuracy), pytest.approx(evaluation.loss, abs=5.1e-7)]


def test_only_what_is_on_offer_deviates(task):
    offered = np.zeros((2, len(task.layers), 8), dtype=bool)
    offered[0, 1:, [1, 3, 7]] = True
    offered[1, 2, [4, 7]] = True
    found = deviations(task.layers, offered)
    assert [(each.layers[0], each.part, each.bits) for each in found] == [
        (1, "weights", 2),
        (1, "weights", 4),
        (2, "weights", 2),
        (2, "weights", 4),
        (2, "activations", 5),
        *((layer, "weights", bits) for layer in range(3, 6) for bits in (2, 4)),
    ]
    names = [each.name(task.layers) for each in everything(task)]
    assert len(set(names)) == len(names)


def test_blocks_are_of_whole_layers():
    wanted = [Deviation((layer,), "weights", bits) for layer in range(7) for bits in (2, 3, 4)]
    blocks = in_blocks(wanted)
    assert [each for block in blocks for each in block] == wanted
    assert all(len(block) >= TOGETHER for block in blocks[:-1])
    assert all(before[-1].layers != after[0].layers for before, after in itertools.pairwise(blocks))
    assert in_blocks([]) == []


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
