import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError
from quantenv.core.records import write_record
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(4)
BITS = st.lists(st.integers(1, 8), min_size=4, max_size=4)


@given(BITS, BITS)
def test_json_round_trip(weights, activations):
    allocation = Allocation.make(LAYERS, weights, activations, task="t", scheme="linear")
    assert Allocation.from_dict(json.loads(json.dumps(allocation.to_dict()))) == allocation


@given(BITS, BITS)
def test_hash_is_equal_exactly_for_equal_bits(first, second):
    a, b = Allocation.make(LAYERS, first), Allocation.make(LAYERS, second, task="elsewhere")
    assert (a.hash == b.hash) == (first == second)


def test_file_round_trip(tmp_path):
    allocation = Allocation.make(LAYERS, [2, 3, 4, 8], 8)
    allocation.save(tmp_path / "deep" / "allocation.json")
    assert Allocation.load(tmp_path / "deep" / "allocation.json") == allocation
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["allocation.json"]


def test_layers_are_matched_by_name_not_by_position():
    allocation = Allocation.make(LAYERS[::-1], [1, 2, 3, 4])
    assert allocation.check_fits(LAYERS).weight_bits == (4, 3, 2, 1)


def test_a_misfit_says_which_layers_differ():
    allocation = Allocation(("layer0", "elsewhere"), (8, 8), (8, 8), task="other")
    with pytest.raises(AllocationError, match=r"'layer1', 'layer2', 'layer3' have no bits.*'elsewhere'.*'other'"):
        allocation.check_fits(LAYERS)


@pytest.mark.parametrize(
    "bits",
    [
        4,
        np.int64(4),
        np.uint8(4),
        np.array(4),
        torch.tensor(4),
        [4] * 4,
        (4,) * 4,
        np.full(4, 4),
        torch.full((4,), 4),
        [np.int8(4), 4, torch.tensor(4), 4],
    ],
)
def test_bits_in_any_form_of_whole_numbers_are_the_same(bits):
    expected = Allocation(tuple(layer.name for layer in LAYERS), (4,) * 4, (4,) * 4)
    made = Allocation.make(LAYERS, bits, bits)
    assert made == expected
    assert set(map(type, (*made.weight_bits, *made.activation_bits))) == {int}


@pytest.mark.parametrize(
    ("bits", "sentence"),
    [
        (4.9, r"A bit-width of all weights is 4\.9: expected a whole number from 1 to 8"),
        (4.0, r"is 4\.0: expected a whole number"),
        (True, "is True: expected a whole number"),
        (np.float64(4), "expected a whole number"),
        (0, "is 0: expected a whole number from 1 to 8"),
        (9, "is 9: expected"),
        (float("nan"), "is nan: expected"),
        ("4", "weight_bits is '4': expected a list"),
        ("4444", "weight_bits is '4444': expected a list"),
        (None, "weight_bits is None: expected a list"),
        ({"layer0": 4}, "expected a list"),
        ([4, 4, 4], "weight_bits has 3 bit-widths, and the network 4 layers"),
        ([4] * 5, "has 5 bit-widths"),
        ([4, 4.9, 4, 4], r"weight_bits of layer 'layer1' is 4\.9: expected a whole number from 1 to 8"),
        ([4, 4, True, 4], "weight_bits of layer 'layer2' is True"),
        ([4, 4, "4", 4], "weight_bits of layer 'layer2' is '4'"),
        (np.full(4, 4.9), r"weight_bits of layer 'layer0' is 4\.9"),
        (np.full((4, 2), 4), r"weight_bits of layer 'layer0' is \[4, 4\]"),
        ([0, 4, 4, 4], "weight_bits of layer 'layer0' is 0"),
    ],
)
def test_other_bits_are_named(bits, sentence):
    with pytest.raises(AllocationError, match=sentence):
        Allocation.make(LAYERS, bits)
    with pytest.raises(AllocationError, match=sentence.replace("weight", "activation")):
        Allocation.make(LAYERS, 8, bits)


def test_layers_are_those_of_a_network():
    with pytest.raises(AllocationError, match=r"give task\.layers"):
        Allocation.make(["conv1", "conv2"], 4)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, True, "4"])
def test_bits_outside_one_to_eight_are_refused(bits):
    with pytest.raises(AllocationError, match="from 1 to 8"):
        Allocation(("a",), (bits,), (8,))


def test_lengths_and_repeated_names_are_refused():
    with pytest.raises(AllocationError, match="one weight and one activation"):
        Allocation(("a", "b"), (8,), (8, 8))
    with pytest.raises(AllocationError, match="more than once"):
        Allocation(("a", "a"), (8, 8), (8, 8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON, or is truncated"),
        ('{"format": "quantenv-allocation-2", "lay', "truncated"),
        ("[" * 5000, "more than 64 deep"),
        ("[1, 2]", "expected names with values"),
        ('{"format": "something else"}', "format is 'something else'; expected 'quantenv-allocation-2'"),
        ('{"format": "quantenv-allocation-2", "task": "", "scheme": "", "checksum": ""}', "lacks the key 'layers'"),
        ('{"format": "quantenv-allocation-2", "task": "", "scheme": "", "layers": [3]}', r"layers\[0\] is 3"),
        ('{"format": "quantenv-allocation-2", "task": "", "scheme": "", "layers": []}', "layers has 0 entries"),
        ('{"format": "quantenv-allocation-2", "task": "", "task": "", "layers": []}', "the key 'task' twice"),
    ],
)
def test_damaged_files_are_clear_errors(tmp_path, content, message):
    path = tmp_path / "allocation.json"
    path.write_text(content)
    with pytest.raises(AllocationError, match=message) as error:
        Allocation.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bits": 4.9}, r"layers\[0\]\.weight_bits is 4.9; expected a whole number"),
        ({"weight_bits": True}, "is true; expected a whole number"),
        ({"activation_bits": 0}, "is 0; expected a whole number of at least 1"),
        ({"activation_bits": 8_000_000}, "of at most 8"),
        ({"name": 3}, r"layers\[0\]\.name is 3; expected text"),
        ({"bits": 3}, r"unknown key 'layers\[0\]\.bits'"),
        ({"channels": [-1]}, r"channels\[0\] is -1"),
        ({"channels": [1]}, "'layer0' has the channels"),
        ({"name": "layer1"}, "names a layer more than once"),
    ],
)
def test_a_file_with_a_right_checksum_is_held_to_the_schema_all_the_same(tmp_path, change, message):
    path = tmp_path / "allocation.json"
    content = Allocation.make(LAYERS, 4).to_dict()
    del content["checksum"]
    content["layers"][0] |= change
    write_record(path, content)
    with pytest.raises(AllocationError, match=message):
        Allocation.load(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [('"weight_bits": 4', '"weight_bits": 5'), ('"t1"', '"t2"'), ('"linear"', '"k-means"'), ('"layer0"', '"layer9"')],
)
def test_an_edited_file_does_not_match_its_checksum(tmp_path, before, after):
    path = tmp_path / "allocation.json"
    Allocation.make(LAYERS, 4, task="t1", scheme="linear").save(path)
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(AllocationError, match="does not match its checksum"):
        Allocation.load(path)


def test_binary_and_missing_files_are_clear_errors(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AllocationError, match="not UTF-8"):
        Allocation.load(tmp_path / "binary.json")
    with pytest.raises(AllocationError, match="No such file"):
        Allocation.load(tmp_path / "missing.json")
