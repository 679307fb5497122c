import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.channel_groups import PROBE_BITS
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.evaluation.table.shipped import resolve_task
from quantenv.quantization.formats import quantize
from quantenv.sensitivity import channel_sensitivity, group_channels
from quantenv.tasks import TaskSource, get_task
from tests.sensitivity.conftest import small_task


@pytest.fixture
def task():
    return small_task()


def test_sensitivity_is_the_squared_change_of_each_sample_s_loss(task):
    # In the weights, sample by sample, where the code goes through the outputs, batch by batch.
    calibration = calibrate_task(task)
    found = channel_sensitivity(task)
    assert list(found) == [layer.name for layer in calibration.modules]
    weights = {name: calibration.graph.get_submodule(name).weight for name in found}
    change = {name: quantize(w, calibration.weight_grids[name][PROBE_BITS]) - w for name, w in weights.items()}
    expected = {name: np.zeros(len(w)) for name, w in weights.items()}
    split = task.splits["calibration"]
    for sample, label in zip(split.inputs.split(1), split.labels.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(calibration.graph(sample), label), list(weights.values()))
        for (name, moved), gradient in zip(change.items(), gradients, strict=True):
            expected[name] += (gradient * moved).flatten(1).sum(1).detach().double().square().numpy() / len(split)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-7 * expected[name].max())


def test_the_most_sensitive_channels_come_first_in_groups_of_equal_size(task):
    grouped = group_channels(task, 3)
    harms = channel_sensitivity(task)
    for name, groups in grouped.channel_groups.items():
        sizes = [len(group) for group in groups]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        for group, following in itertools.pairwise(groups):
            assert harms[name][list(group)].min() >= harms[name][list(following)].max()
    assert [layer.name for layer in grouped.layers[:4]] == ["stem#0", "stem#1", "stem#2", "block.grouped#0"]


def test_groups_are_part_of_the_task_s_identity(task):
    again, grouped = group_channels(task, 2), group_channels(task, 2)
    assert grouped.channel_groups == again.channel_groups
    assert grouped.identity == again.identity
    assert len({task.identity, grouped.identity, group_channels(task, 3).identity}) == 3
    swapped = {name: groups[::-1] for name, groups in grouped.channel_groups.items()}
    assert dataclasses.replace(task, channel_groups=swapped).identity != grouped.identity
    assert dataclasses.replace(grouped, channel_groups={}).identity == task.identity
    assert group_channels(task, 1) is task


def test_layers_have_no_more_groups_than_their_channels_allow(task):
    channels = {"stem": 8, "block.grouped": 8, "block.depthwise": 8, "left": 6, "right": 6, "head": 5}

    def counts(groups, least=1):
        grouped = group_channels(task, groups, least)
        return {name: len(grouped.channel_groups.get(name, [()])) for name in channels}

    assert counts(100) == channels
    assert counts(4, least=3) == {"stem": 2, "block.grouped": 2, "block.depthwise": 2, "left": 2, "right": 2, "head": 1}
    assert counts({"left": 2, "head": 1}) == dict.fromkeys(channels, 1) | {"left": 2}


@pytest.mark.parametrize(
    ("groups", "least", "sentence"),
    [
        (0, 1, r"'stem' is to have 0 channel groups; expected a whole number above 0"),
        ({"left": 2.0}, 1, r"'left' is to have 2.0 channel groups"),
        ({"left": True}, 1, r"'left' is to have True channel groups"),
        ({"lefd": 2}, 1, r"Did you mean 'left'"),
        ({"left": 4}, 2, r"'left' has 6 output channels, too few for 4 groups of at least 2"),
        (2, 0, r"at least 0 channels; expected a number of at least 1"),
    ],
)
def test_wrong_numbers_are_refused(task, groups, least, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        group_channels(task, groups, least)


def test_what_cannot_be_grouped_is_refused(task):
    with pytest.raises(QuantenvError, match="has channel groups already"):
        group_channels(group_channels(task, 2), 2)
    with pytest.raises(QuantenvError, match=r"one codebook for a layer.*use scheme 'linear'"):
        group_channels(dataclasses.replace(task, scheme="k-means+bias"), 2)
    with pytest.raises(QuantenvError, match=r"'left' are not a partition of its 6 output channels"):
        _ = dataclasses.replace(task, channel_groups={"left": [[0], [1]]}).layers
    with pytest.raises(QuantenvError, match=r"--channel_groups out.*group_channels"):
        get_task("digits", TaskSource(channel_groups=2))
    with pytest.raises(QuantenvError, match="give --channel_groups, or leave it out"):
        TaskSource(least_channels=2)
    with pytest.raises(QuantenvError, match=r"--channel_groups.stem is 0"):
        TaskSource(channel_groups={"stem": 0})
    with pytest.raises(QuantenvError, match=r"leave --channel_groups out"):
        resolve_task("digits_table", TaskSource(channel_groups=2))


def test_tasks_by_name_can_be_grouped():
    grouped = resolve_task("digits", TaskSource(channel_groups={"stem": 2, "classifier": 5}))
    assert len(grouped.layers) == 8 + 1 + 4
    assert grouped.channel_groups == group_channels(get_task("digits"), {"stem": 2, "classifier": 5}).channel_groups


def test_equal_bits_evaluate_as_the_whole_layers_do(task):
    grouped = group_channels(task, 3)
    of_task, of_groups = PTQEvaluator(task, "float"), PTQEvaluator(grouped, "float")
    assert of_task.identity != of_groups.identity
    for bits in (2, 4, 8):
        for activations in (4, 8):
            (expected,) = of_task.evaluate([Allocation.make(task.layers, bits, activations)])
            assert of_groups.evaluate([Allocation.make(grouped.layers, bits, activations)]) == [expected]
