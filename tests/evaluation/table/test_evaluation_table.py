import dataclasses
import io
import itertools
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.allocation import Allocation
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.core.files import content_hash
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from tests.synthetic import AdditiveEvaluator, synthetic_layers
from tests.synthetic_table import BITS, synthetic_table

TABLE = synthetic_table()
TIED = synthetic_table(5, groups=[[0, 3], [1], [2, 4]])


# Rows


def test_rows_are_in_c_order_with_the_first_group_slowest():
    grid = np.arange(3**4).reshape(3, 3, 3, 3)
    for options in itertools.product(range(3), repeat=4):
        allocation = Allocation.make(TABLE.layers, [BITS[option] for option in options])
        assert TABLE.index(allocation) == grid[options]


@pytest.mark.parametrize("table", [TABLE, TIED])
def test_index_and_allocation_are_inverse(table):
    seen = set()
    for row in range(table.rows):
        allocation = table.allocation(row)
        assert table.index(allocation) == row
        assert (allocation.task, allocation.scheme) == ("synthetic", "linear")
        seen.add(allocation.bits)
    assert len(seen) == table.rows == 3 ** len(table.groups)


def test_tied_layers_have_the_same_bits_in_every_row():
    for row in range(TIED.rows):
        bits = TIED.allocation(row).weight_bits
        assert bits[0] == bits[3]
        assert bits[2] == bits[4]


def test_layers_may_be_named_in_another_order():
    allocation = TABLE.allocation(17)
    shuffled = Allocation(allocation.names[::-1], allocation.weight_bits[::-1], allocation.activation_bits[::-1])
    assert TABLE.index(shuffled) == 17


@pytest.mark.parametrize(
    ("table", "weights", "activations", "message"),
    [
        (TABLE, [2, 3, 4, 8], 8, "Layer 'layer1' has 3/8 .* holds weight bits 2, 4, 8, and 8 bits of all activations"),
        (TABLE, [2, 4, 4, 8], [8, 8, 4, 8], "Layer 'layer2' has 4/4"),
        (TIED, [2, 4, 4, 8, 4], 8, "ties the layers layer0, layer3: give them the same"),
        (TIED, [2, 4, 4, 2, 5], 8, "Layer 'layer4' has 5/8"),
    ],
)
def test_allocations_outside_the_table_are_refused(table, weights, activations, message):
    with pytest.raises(AllocationError, match=message):
        table.index(Allocation.make(table.layers, weights, activations))


def test_allocations_of_other_networks_are_refused():
    with pytest.raises(AllocationError, match="does not fit this network"):
        TABLE.index(Allocation.make(synthetic_layers(3), 4))


@pytest.mark.parametrize("row", [-1, 81])
def test_rows_outside_the_table_are_refused(row):
    with pytest.raises(QuantenvError, match="rows 0 to 80"):
        TABLE.allocation(row)


# The evaluator


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(BITS), min_size=4, max_size=4))
def test_looking_up_is_evaluating(weights):
    live = AdditiveEvaluator(synthetic_layers(4))
    allocation = Allocation.make(live.layers, weights)
    [computed], [found] = live.evaluate([allocation]), TableEvaluator(TABLE).evaluate([allocation])
    assert found == Evaluation(round(computed.accuracy * 1000), 1000, round(computed.loss, 6))


def test_the_evaluator_is_what_evaluators_are():
    evaluator = TableEvaluator(TABLE)
    assert evaluator.layers == TABLE.layers
    assert evaluator.reference == evaluator.float_evaluation("search") == Evaluation(960, 1000, 0.1)
    assert evaluator.evaluate([]) == []
    first, last = evaluator.evaluate([TABLE.allocation(0), TABLE.allocation(80)], "test")
    assert (first, last) == (TABLE.evaluation(0, "test"), TABLE.evaluation(80, "test"))
    assert first.correct == TABLE.correct["test"][0]
    with pytest.raises(QuantenvError, match="Did you mean 'test'"):
        evaluator.evaluate([TABLE.allocation(0)], "tets")


def test_identity_is_that_of_the_content():
    assert TableEvaluator(TABLE).identity == TableEvaluator(synthetic_table()).identity
    changed = synthetic_table(evaluator_identity="another")
    assert TableEvaluator(TABLE).identity != TableEvaluator(changed).identity


def test_a_table_without_the_search_split_evaluates_nothing():
    parts = {name: {"test": getattr(TABLE, name)["test"]} for name in ("reference", "correct", "loss")}
    with pytest.raises(QuantenvError, match="does not hold the search split"):
        TableEvaluator(dataclasses.replace(TABLE, **parts))


# Files


@pytest.mark.parametrize("table", [TABLE, TIED])
def test_what_is_saved_is_loaded(tmp_path, table):
    table.save(tmp_path / "a.npz")
    loaded = EvaluationTable.load(tmp_path / "a.npz")
    for field in dataclasses.fields(EvaluationTable):
        left, right = getattr(loaded, field.name), getattr(table, field.name)
        if field.name in ("correct", "loss"):
            for split in right:
                assert left[split].dtype == right[split].dtype
                assert np.array_equal(left[split], right[split])
        elif field.name == "sensitivity":
            assert np.array_equal(left, right)
        else:
            assert left == right
    assert loaded.hash == table.hash
    loaded.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_files_are_compact(tmp_path):
    table = synthetic_table(6, bits=(2, 4, 6, 8))
    table.save(tmp_path / "table.npz")
    assert (tmp_path / "table.npz").stat().st_size < table.rows * 12 + 4000  # two counts, two losses


@pytest.mark.parametrize(
    "field", ["name", "task", "task_identity", "scheme", "evaluator_identity", "provenance", "sensitivity", "loss"]
)
def test_everything_is_in_the_hash(field):
    value = getattr(TABLE, field)
    if field == "loss":
        changed = {**value, "test": np.round(value["test"] + 1e-6, 6)}
    elif field == "sensitivity":
        changed = value * 2
    else:
        changed = {"command": "another"} if field == "provenance" else f"{value}x"
    assert dataclasses.replace(TABLE, **{field: changed}).hash != TABLE.hash


@pytest.fixture
def file(tmp_path):
    TABLE.save(tmp_path / "table.npz")
    return tmp_path / "table.npz"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(QuantenvError, match="truncated or damaged"):
        EvaluationTable.load(file)


def test_every_flipped_byte_is_noticed_or_harmless(file):
    content = file.read_bytes()
    refused = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        file.write_bytes(damaged)
        try:
            assert EvaluationTable.load(file).hash == TABLE.hash  # a time stamp in the archive, for example
        except QuantenvError:
            refused += 1
    assert refused > 0.8 * len(range(0, len(content), 7))


def test_changed_content_does_not_match_its_hash(file):
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["correct_search"][3] -= 1
    np.savez_compressed(file, **arrays)
    with pytest.raises(QuantenvError, match="does not match its content hash"):
        EvaluationTable.load(file)
    arrays.pop("loss_test")
    np.savez_compressed(file, **arrays)
    with pytest.raises(QuantenvError, match="incomplete or something else: it has no entry 'loss_test'"):
        EvaluationTable.load(file)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(QuantenvError, match="no entry 'metadata'"):
        EvaluationTable.load(tmp_path / "other.npz")
    for name, metadata in (("list.npz", b"[1]"), ("format.npz", b'{"format": "x"}'), ("json.npz", b"{")):
        np.savez(tmp_path / name, metadata=np.frombuffer(metadata, dtype=np.uint8))
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickle.npz", metadata=np.array([{}], dtype=object))
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 9
    for name in (*names, "missing.npz"):
        with pytest.raises(QuantenvError, match=rf"evaluation table .*{name}"):
            EvaluationTable.load(tmp_path / name)


def rewritten(file, change):
    """Writes a table anew, its description and arrays changed, under the hash that then is right where it can be."""
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(arrays.pop("metadata").tobytes())
    change(about, arrays)
    parts = [json.dumps({key: about[key] for key in about if key != "hash"}, sort_keys=True)]
    for key in ("sensitivity", "correct_search", "loss_search", "correct_test", "loss_test"):
        if key in arrays:
            parts += [key, arrays[key].dtype.str, np.ascontiguousarray(arrays[key]).tobytes()]
    text = json.dumps({**about, "hash": content_hash(parts)}).encode()
    np.savez_compressed(file, metadata=np.frombuffer(text, np.uint8), **arrays)


def test_a_forged_hash_is_accepted_for_what_is_sound(file):
    rewritten(file, lambda about, arrays: about.update(task="other"))
    assert EvaluationTable.load(file).task == "other"


def set_layer(**changes):
    return lambda about, arrays: about["layers"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, arrays: about.update(more=1),
        lambda about, arrays: about.pop("scheme"),
        lambda about, arrays: about.update(name=None),
        lambda about, arrays: about.update(bits=[2, 4, True]),
        lambda about, arrays: about.update(bits=[2, 4, 8.0]),
        lambda about, arrays: about.update(groups=[["layer0"]] * 5000),
        lambda about, arrays: about.update(groups=[[]]),
        lambda about, arrays: about.update(groups="layer0"),
        lambda about, arrays: about.update(layers=[]),
        lambda about, arrays: about.update(layers=[None]),
        lambda about, arrays: about.update(reference={}),
        lambda about, arrays: about["reference"]["test"].update(samples=0),
        lambda about, arrays: about["reference"]["test"].update(correct=-1),
        lambda about, arrays: about["reference"]["test"].update(loss="0.1"),
        lambda about, arrays: about["reference"].pop("test"),
        lambda about, arrays: about["reference"].update(more=about["reference"]["test"]),
        set_layer(params=10**400),
        set_layer(params=-1),
        set_layer(params=2.5),
        set_layer(kind="subprocess.Popen"),
        set_layer(kernel_size=[]),
        set_layer(kernel_size=[3, 3, 3, 3]),
        set_layer(input_shape=[1] * 5000),
        set_layer(name=None),
        set_layer(name="layer1"),
        lambda about, arrays: arrays.update(correct_test=arrays["correct_test"].astype(np.int64)),
        lambda about, arrays: arrays.update(correct_test=arrays["correct_test"][None]),
        lambda about, arrays: arrays.update(correct_test=arrays["correct_test"] + np.uint16(1000)),
        lambda about, arrays: about.update(format="quantenv-table-2"),
        lambda about, arrays: arrays.update(loss_test=arrays["loss_test"].astype(np.int32)),
        lambda about, arrays: arrays.update(loss_test=arrays["loss_test"].astype(np.float32)),
        lambda about, arrays: arrays.update(loss_test=arrays["loss_test"].astype(complex)),
        lambda about, arrays: arrays.update(sensitivity=np.zeros(3)),
        lambda about, arrays: arrays.update(weights_a=np.zeros(1 << 20)),
        lambda about, arrays: arrays.update(weights_a=np.array(["text"])),
        lambda about, arrays: arrays.update(other=np.zeros(1)),
    ],
)
def test_forged_content_is_refused(file, change):
    rewritten(file, change)
    with pytest.raises(QuantenvError, match=r"table\.npz"):
        EvaluationTable.load(file)


def test_nothing_unpacks_to_more_than_the_description_speaks_of(file):
    """A table of 2 MB that would take 2 GB: refused before it is unpacked, wherever the size is written or hidden."""
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    metadata = arrays.pop("metadata")

    def bomb(zeros, claimed=None):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in {"metadata": metadata, **arrays}.items():
                stream = io.BytesIO()
                np.save(stream, array)
                archive.writestr(f"{name}.npy", stream.getvalue())
            with archive.open("loss_test.npy" if claimed else "weights_a.npy", "w") as entry:
                for _ in range(zeros >> 20):
                    entry.write(bytes(1 << 20))
        if claimed:
            content = bytearray(file.read_bytes())
            size = zeros.to_bytes(4, "little")
            at = content.rindex(size)  # in the directory at the end
            content[at : at + 4] = claimed.to_bytes(4, "little")
            file.write_bytes(content)

    tracemalloc.start()
    bomb(64 << 20)
    with pytest.raises(QuantenvError, match=r"'weights_a' would unpack to 67,108,864 bytes; expected at most 65,536"):
        EvaluationTable.load(file)
    del arrays["loss_test"]
    bomb(64 << 20, claimed=452)
    with pytest.raises(QuantenvError, match=r"table\.npz"):
        EvaluationTable.load(file)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_entries_that_are_twice_or_encrypted_or_no_arrays_are_refused(file):
    content = file.read_bytes()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("loss_test.npy", b"again")
    with pytest.raises(QuantenvError, match="there twice"):
        EvaluationTable.load(file)
    file.write_bytes(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("run.py", b"print()")
    with pytest.raises(QuantenvError, match="no array"):
        EvaluationTable.load(file)
    encrypted = bytearray(content)
    encrypted[encrypted.rindex(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(encrypted)
    with pytest.raises(QuantenvError, match="encrypted"):
        EvaluationTable.load(file)


# Parts that do not fit


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        TABLE.correct["search"][0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": (("layer0",), ("layer1",))}, "groups must name every layer once"),
        ({"groups": (("layer1",), ("layer0",), ("layer2",), ("layer3",))}, "groups must name every layer once"),
        ({"bits": (4, 2, 8)}, "expected 1-8, ascending"),
        ({"bits": (2, 4, 9)}, "expected 1-8, ascending"),
        ({"bits": ()}, "expected 1-8, ascending"),
        ({"bits": (2, 4)}, r"expected uint16 or uint32 \(16,\)"),
        ({"activation_bits": 0}, "expected 1-8"),
        ({"correct": {}}, "of the same splits"),
        ({"correct": {**TABLE.correct, "test": np.zeros(81)}}, "test counts are float64"),
        ({"correct": {**TABLE.correct, "test": np.full(81, 1001, np.uint16)}}, "more correct predictions"),
        ({"loss": {**TABLE.loss, "test": np.full(81, np.nan)}}, "negative, over 4294.967295 nats or NaN"),
        ({"loss": {**TABLE.loss, "search": np.zeros(81, np.float32)}}, "search losses are float32"),
        ({"loss": {**TABLE.loss, "test": np.full(81, np.inf)}}, "negative, over 4294.967295 nats or NaN"),
        ({"loss": {**TABLE.loss, "test": np.full(81, 4295.0)}}, "negative, over 4294.967295 nats or NaN"),
        ({"loss": {**TABLE.loss, "test": np.full(81, -1.0)}}, "negative, over 4294.967295 nats or NaN"),
        (
            {"loss": {**TABLE.loss, "test": np.full(81, 0.1234567)}},
            "test split holds a loss that is not rounded to 1e-6",
        ),
        ({"reference": {**TABLE.reference, "test": Evaluation(1001, 1000, 0.1)}}, "more correct predictions"),
        (
            {"reference": {**TABLE.reference, "test": Evaluation(1, 1000, np.nan)}},
            "negative, over 4294.967295 nats or NaN",
        ),
        ({"sensitivity": np.full(4, np.nan)}, "sensitivities or weights hold NaN"),
        ({"weights": {"a": np.array([np.inf])}}, "sensitivities or weights hold NaN"),
        ({"weights": {"a": np.zeros(1 << 16)}}, "up to 65,536 bytes only"),
        ({"layers": (TABLE.layers[0],) * 4}, "same name"),
        ({"sensitivity": np.zeros(3)}, r"Sensitivities are float64 \(3,\)"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, message):
    with pytest.raises(QuantenvError, match=message):
        dataclasses.replace(TABLE, **changes)
