"""Channel groups as layers: their shares add up, allocations say what they are, names stand for all of a layer's."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.allocation import Allocation
from quantenv.core.channel_groups import ChannelGroup, indices_of, parts_of, split_layer, split_layers, whole
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.core.records import sealed
from quantenv.core.ties import resolve_groups
from quantenv.hardware import device_names, load_device
from quantenv.hardware.costs import overhead_bytes
from tests.synthetic import chain_costs, synthetic_layers

LAYERS = synthetic_layers(3)
DEPTHWISE = LayerSpec("dw", "depthwise", 6, 6, (3, 3), (1, 1), 6, (6, 8, 8), (6, 8, 8), 54, 6, 54 * 64)


def cut(layers=LAYERS, count=3, seed=0):
    """Random partitions of every layer but the first into `count` groups."""
    rng = np.random.default_rng(seed)
    return {
        layer.name: [part.tolist() for part in np.array_split(rng.permutation(layer.out_channels), count)]
        for layer in layers[1:]
    }


def test_groups_are_layers_of_some_channels_that_add_up():
    rows = split_layers((DEPTHWISE, *LAYERS), {"dw": [[5, 0], [1, 2, 3, 4]], "layer1": [[0], range(1, 14)]} | cut())
    first, second, *_ = rows
    assert (first.name, first.channels, second.name) == ("dw#0", (0, 5), "dw#1")
    assert (first.in_channels, first.groups, first.input_shape, first.output_shape) == (2, 2, (2, 8, 8), (2, 8, 8))
    assert (first.params, first.bias_params, first.macs) == (18, 2, 18 * 64)
    assert not isinstance(rows[2], ChannelGroup)  # a layer that is not named is whole
    linear = rows[-1]
    assert linear.input_shape == LAYERS[-1].input_shape
    assert linear.output_shape == (linear.out_channels,)
    for part in parts_of(rows):
        layer = whole(rows[part[0]])
        for what in ("params", "bias_params", "macs", "out_channels"):
            assert sum(getattr(rows[index], what) for index in part) == getattr(layer, what)
    assert overhead_bytes(rows) == overhead_bytes((DEPTHWISE, *LAYERS))


def test_one_group_is_the_layer_itself():
    assert split_layer(DEPTHWISE, [range(6)]) == (DEPTHWISE,)


@pytest.mark.parametrize("groups", [[[0, 1, 2], [3, 4]], [[0, 1, 2], [2, 3, 4, 5]], [range(6), []], [range(7)], []])
def test_groups_that_are_no_partition_are_refused(groups):
    with pytest.raises(QuantenvError, match=r"'dw' are not a partition of its 6 output channels"):
        split_layer(DEPTHWISE, groups)


def test_unknown_layers_are_refused():
    with pytest.raises(QuantenvError, match="Did you mean 'layer1'"):
        split_layers(LAYERS, {"layr1": [[0]]})


@pytest.mark.parametrize("name", device_names())
@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 4), seed=st.integers(0, 99))
def test_costs_of_groups_with_equal_bits_add_up_to_the_layers(name, count, seed):
    rows = split_layers(LAYERS, cut(count=count, seed=seed))
    whole_costs, costs = (chain_costs(layers, load_device(name)) for layers in (LAYERS, rows))
    assert costs.keys() == whole_costs.keys()
    for metric, table in costs.items():
        if metric == "memory":
            bits = np.random.default_rng(seed).integers(1, 9, (len(LAYERS), 2))
            owner = np.repeat(np.arange(len(LAYERS)), [len(part) for part in parts_of(rows)])
            assert table.costs(bits[owner]) == whole_costs[metric].costs(bits)
            continue
        summed = np.stack([table.values[list(part)].sum(axis=0) for part in parts_of(rows)])
        if metric in ("size", "bops"):
            assert (summed == whole_costs[metric].values).all()
        np.testing.assert_allclose(summed, whole_costs[metric].values, rtol=1e-14)
        assert (table.values[0] == whole_costs[metric].values[0]).all()  # whole: to the last digit
    by_hand = [row.params * bits / 8 for row in rows for bits in range(1, 9)]
    np.testing.assert_allclose(costs["size"].values[:, :, 0].ravel(), by_hand, rtol=1e-15)


def test_look_up_tables_have_a_row_for_each_whole_layer(tmp_path):
    measured = np.random.default_rng(0).random((3, 8, 8)).cumsum(1).cumsum(2)
    np.save(tmp_path / "latency.npy", measured)
    description = Path(tmp_path / "device.yaml")
    description.write_text(
        "name: mine\ndescription: A measured device.\n"
        "weight_bits: {value: [2, 4, 8], source: test}\nactivation_bits: {value: [8], source: test}\n"
        "latency:\n  model: lookup\n  file: {value: latency.npy, source: test}\n"
        "  scale: {value: 1.0, source: test}\n"
    )
    rows = split_layers(LAYERS, cut())
    values = chain_costs(rows, load_device(str(description)))["latency"].values
    summed = np.stack([values[list(part)].sum(axis=0) for part in parts_of(rows)])
    np.testing.assert_allclose(summed, measured, rtol=1e-14)


def test_a_layer_s_name_stands_for_all_its_groups():
    rows = split_layers(LAYERS, cut())
    assert indices_of("layer1", rows) == (1, 2, 3)
    assert indices_of("layer1#1", rows) == (2,)
    assert indices_of("layer9", rows) == ()
    assert resolve_groups([["layer1", "layer0"]], rows) == ((0, 1, 2, 3), (4,), (5,), (6,))
    with pytest.raises(QuantenvError, match=r"'layer1' is tied more than once"):
        resolve_groups([["layer1#0"], ["layer1"]], rows)


# Allocations --------------------------------------------------------------------------------------------------


def test_allocation_files_say_which_channels_each_group_has(tmp_path):
    rows = split_layers(LAYERS, cut())
    allocation = Allocation.make(rows, [8, 2, 3, 4, 5, 6, 7], 4, "mine", "linear")
    allocation.save(tmp_path / "allocation.json")
    content = json.loads((tmp_path / "allocation.json").read_text())
    assert "channels" not in content["layers"][0]
    assert content["layers"][1]["channels"] == list(rows[1].channels)
    loaded = Allocation.load(tmp_path / "allocation.json")
    assert loaded == allocation
    assert loaded.check_fits(rows) == allocation
    assert split_layers(LAYERS, loaded.groups) == rows


def test_files_and_hashes_of_whole_layers_are_what_they_were():
    allocation = Allocation.make(LAYERS, [2, 3, 4], 8)
    assert allocation.channels == ()
    assert allocation.groups == {}
    assert [sorted(row) for row in allocation.to_dict()["layers"]] == [["activation_bits", "name", "weight_bits"]] * 3
    assert Allocation(("a", "b"), (2, 3), (8, 8)).hash == "1d8da675c894ba35"


def test_an_allocation_of_other_groups_is_refused():
    rows, others = (split_layers(LAYERS, cut(seed=seed)) for seed in (0, 1))
    allocation = Allocation.make(rows, 4)
    with pytest.raises(AllocationError, match=r"'layer1#0'.* stand for other output channels"):
        allocation.check_fits(others)
    with pytest.raises(AllocationError, match="'layer1', 'layer2' have no bits"):
        allocation.check_fits(LAYERS)
    without = Allocation(allocation.names, allocation.weight_bits, allocation.activation_bits)
    with pytest.raises(AllocationError, match="stand for other output channels"):
        without.check_fits(rows)


def test_groups_of_a_layer_share_their_activation_bits():
    rows = split_layers(LAYERS, cut())
    with pytest.raises(AllocationError, match=r"'layer1' have 4 and 8 activation bits; they read the same tensor"):
        Allocation.make(rows, 4, [8, 4, 8, 4, 2, 2, 2])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[1].pop("channels"), "'layer1#0' has the channels"),
        (lambda rows: rows[0].update(channels=[0]), "'layer0' has the channels"),
        (lambda rows: rows[1].update(channels=["0"]), r"layers\[1\]\.channels\[0\] is '0'"),
        (lambda rows: rows[1].update(channels=3), r"layers\[1\]\.channels is 3; expected a list"),
    ],
)
def test_unsound_channels_are_refused(change, sentence):
    content = Allocation.make(split_layers(LAYERS, cut()), 4).to_dict()
    del content["checksum"]
    change(content["layers"])
    with pytest.raises(AllocationError, match=sentence):
        Allocation.from_dict(sealed(content))


def test_changed_channels_do_not_match_the_checksum():
    content = Allocation.make(split_layers(LAYERS, cut()), 4).to_dict()
    content["layers"][1]["channels"].append(99)
    with pytest.raises(AllocationError, match="does not match its checksum"):
        Allocation.from_dict(content)
