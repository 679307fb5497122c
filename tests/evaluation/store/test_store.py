import dataclasses
import math
import pickle
import sqlite3
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store import store as store_module
from quantenv.evaluation.store.store import EvaluationStore, Record, StoreConflictError, open_store
from tests.evaluation.records import BITS, many, record

PRINTABLE = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
records = st.builds(
    Record,
    identity=st.text(PRINTABLE, min_size=1, max_size=40),
    split=st.sampled_from(["search", "test"]),
    bits=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=60).map(tuple),
    evaluation=st.builds(
        Evaluation, st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1), st.floats(min_value=0, allow_infinity=True)
    ),
    task=st.text(PRINTABLE, max_size=20),
    created=st.floats(1, 1e10),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(records, max_size=8, unique_by=lambda r: (r.identity, r.split, r.bits)))
def test_what_is_stored_reads_back_the_same_to_the_bit(tmp_path_factory, written):
    location = str(tmp_path_factory.mktemp("store") / "e.sqlite")
    EvaluationStore(location).add_all(written)
    again = EvaluationStore(location)
    for item in written:
        assert again.find(item.identity, item.split, [item.bits]) == {item.bits: item.evaluation}
    assert sorted(again.records(), key=repr) == sorted(written, key=repr)


def test_a_loss_that_is_not_a_number_is_kept(store):
    store.add(record(loss=math.nan))
    assert math.isnan(store.find("a", "search", [BITS])[BITS].loss)
    store.add(record(loss=math.nan))  # the same value


def test_identities_splits_and_bits_are_kept_apart(store):
    others = [record(), record(identity="b"), record(split="test"), record(bits=BITS[:2]), record(bits=BITS[::-1])]
    others = [dataclasses.replace(r, evaluation=Evaluation(i, 10, float(i))) for i, r in enumerate(others)]
    store.add_all(others)
    for number, item in enumerate(others):
        assert store.find(item.identity, item.split, [item.bits]) == {item.bits: Evaluation(number, 10, float(number))}
    assert store.find("c", "search", [BITS]) == store.find("a", "train", [BITS]) == {}


def test_batches_longer_than_a_statement(store):
    written = many(512) + many(512, "b")
    written = [dataclasses.replace(r, bits=(*r.bits, (i // 512 + 1, 1))) for i, r in enumerate(written * 2)]
    store.add_all(written)
    assert store.count() == 1024 + 1024
    bits = [r.bits for r in written if r.identity == "a"]
    assert store.find("a", "search", bits) == {r.bits: r.evaluation for r in written if r.identity == "a"}
    assert store.find("a", "search", []) == {}
    assert {r.bits for r in store.records("b")} == {r.bits for r in written if r.identity == "b"}


def test_the_same_again_changes_nothing_and_another_value_is_refused(store):
    store.add(record(created=5.0))
    store.add(record(created=6.0, task="renamed"))
    (kept,) = store.records()
    assert (kept.created, kept.task) == (5.0, "")
    for other in (record(correct=8), record(loss=0.5 + 1e-16), record(loss=math.nan)):
        with pytest.raises(StoreConflictError, match="'a', split 'search', bits '482888' has two values"):
            store.add(other)
    with pytest.raises(StoreConflictError):
        store.add_all([*many(20), record(correct=8)])
    assert store.find("a", "search", [BITS])[BITS] == record().evaluation


def test_the_portable_insert_does_the_same(store, monkeypatch):
    monkeypatch.setattr(store, "_insert", None)  # as for databases without ON CONFLICT DO NOTHING
    store.add_all(many(20))
    store.add_all(many(40))
    assert store.count() == 40
    with pytest.raises(StoreConflictError):
        store.add_all([*many(50), dataclasses.replace(many(1)[0], evaluation=Evaluation(9, 10, 0.5))])


def test_networks_may_have_any_number_of_layers(store):
    long = [record(bits=((8, 8),) * 5000 + ((last, 8),), correct=last) for last in range(1, 9)]
    store.add_all(long)
    assert sorted(r.bits for r in store.records()) == sorted(r.bits for r in long)
    assert store.find("a", "search", [r.bits for r in long]) == {r.bits: r.evaluation for r in long}
    assert store.find("a", "search", [((8, 8),) * 5000]) == {}


def test_keys_that_are_too_long_are_refused(store):
    with pytest.raises(QuantenvError, match="40 characters of identity"):
        store.add(record(identity="x" * 41))


def test_summaries_counts_and_pruning(store):
    store.add_all([dataclasses.replace(r, created=100.0, task="t") for r in many(30)])
    store.add_all([dataclasses.replace(r, created=200.0 + i) for i, r in enumerate(many(10, "b"))])
    rows = [(s.identity, s.task, s.split, s.rows, s.oldest, s.newest) for s in store.summaries()]
    assert rows == [("b", "", "search", 10, 200, 209), ("a", "t", "search", 30, 100, 100)]
    assert (store.count("a"), store.count(before=205), store.count("b", 205), store.count("c")) == (30, 35, 5, 0)
    assert store.prune("b", 205) == 5
    assert store.prune(before=150) == 30
    assert [r.identity for r in store.records()] == ["b"] * 5
    size = store.bytes_used()
    assert size is not None
    assert size >= 4096


def test_the_file_is_written_ahead(store, path):
    store.add(record())
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Where it is ----------------------------------------------------------------------------------------------


def test_the_default_is_in_the_users_data_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("QUANTENV_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_module.default_path().name == "evaluations.sqlite"
    assert store_module.default_path().parent.name == "quantenv"
    opened = open_store()
    assert opened is not None
    assert opened.name == str(store_module.default_path())


def test_the_variable_and_the_option_override_it(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTENV_STORE", str(tmp_path / "variable.sqlite"))
    assert open_store().name.endswith("variable.sqlite")
    assert open_store(str(tmp_path / "option.sqlite")).name.endswith("option.sqlite")
    assert open_store("off") is None
    monkeypatch.setenv("QUANTENV_STORE", "off")
    assert open_store() is None
    assert open_store(f"sqlite:///{tmp_path}/deep/er/url.sqlite").name == str(tmp_path / "deep/er/url.sqlite")


def test_relative_paths_stay_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stores = [EvaluationStore("here.sqlite"), EvaluationStore("sqlite:///here.sqlite")]
    stores[0].add(record())
    monkeypatch.chdir("/")
    assert [store.count() for store in (*stores, pickle.loads(pickle.dumps(stores[1])))] == [1, 1, 1]


def test_a_store_in_memory(monkeypatch):
    store = EvaluationStore("sqlite://")
    store.add_all(many(10))
    assert store.count() == 10
    assert store.bytes_used() is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("postgresql+psycopg://user:secret@127.0.0.1:1/x", "127.0.0.1"),
        ("nosuchdb://user:secret@host/x", "knows no database 'nosuchdb'"),
        ("://secret", "URL cannot be read"),
        ("sqlite+nosuch:///x", "knows no database"),
        ("/proc/no/store.sqlite", "/proc/no/store.sqlite failed"),
        ("/", "is a folder"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_sentence_without_the_password(location, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuantenvError, match=expected) as caught:
        EvaluationStore(location)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_missing_driver_names_the_extra(scheme, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(QuantenvError, match=r"pip install 'quantenv\[postgres\]'"):
        EvaluationStore(f"{scheme}://user@127.0.0.1/x")


@pytest.mark.parametrize("location", [3, True, b"store.sqlite", [], {}])
def test_what_is_no_place_is_refused(location):
    with pytest.raises(QuantenvError, match=r"The store is .*: expected an SQLAlchemy URL, the path"):
        open_store(location)


def test_a_path_is_a_place(tmp_path):
    with_path, with_text = open_store(tmp_path / "a.sqlite"), open_store(str(tmp_path / "a.sqlite"))
    assert with_path.name == with_text.name
