"""What is measured of channel groups, against the whole layers' and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantenv.core.channel_groups import parts_of
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.sensitivity import Settings, group_channels, layer_sensitivity, measure
from quantenv.sensitivity.curvature import Curvature

FAST = Settings(gradient_images=8, probes=2)


@pytest.mark.parametrize("kind", ["fisher", "hessian", "kl"])
def test_harms_of_a_layer_s_activations_are_shared_by_its_groups(task, kind):
    grouped = group_channels(task, 2)
    whole, parts = measure(task, kind, FAST), measure(grouped, kind, FAST)
    assert parts.weights.shape == parts.activations.shape == (len(grouped.layers), 8)
    for layer, part in enumerate(parts_of(grouped.layers)):
        shares = parts.activations[list(part)]
        assert (shares == shares[0]).all()
        if kind != "hessian":  # whose probes are others
            np.testing.assert_allclose(shares.sum(axis=0), whole.activations[layer], rtol=1e-6, atol=1e-12)


def test_diagonal_fisher_information_adds_up_over_groups(task):
    grouped = group_channels(task, 3)
    whole, parts = measure(task, "fisher", FAST), measure(grouped, "fisher", FAST)
    for layer, part in enumerate(parts_of(grouped.layers)):
        np.testing.assert_allclose(parts.weights[list(part)].sum(axis=0), whole.weights[layer], rtol=1e-6, atol=1e-12)


def test_hessian_traces_of_groups_are_those_of_their_rows(task):
    # A linear layer's whole Hessian, by autograd, against probes of its groups' rows.
    grouped = group_channels(task, {"head": 2})
    curvature = Curvature(grouped, Settings(gradient_images=4, probes=300, relative_error=1e-6))
    calibration = calibrate_task(grouped)
    split, head = task.splits["search"], calibration.graph.get_submodule("head")

    def loss(values):
        logits = torch.func.functional_call(calibration.graph, {"head.weight": values}, split.inputs[:4])
        return F.cross_entropy(logits, split.labels[:4])

    hessian = torch.autograd.functional.hessian(loss, head.weight.detach().clone())
    for index in (-2, -1):
        channels = grouped.layers[index].channels
        trace = sum(float(hessian[o, i, o, i]) for o in channels for i in range(head.in_features))
        found = curvature.trace(len(grouped.layers) + index, "weights")
        assert abs(found.mean - trace) < 4 * found.standard_error + 1e-3 * trace


def test_sensitivity_of_groups_at_three_bits(task):
    grouped = group_channels(task, 2)
    found = layer_sensitivity(PTQEvaluator(grouped))
    assert found.shape == (len(grouped.layers),)
    assert (found >= 0).all()
