"""A damaged file is moved aside and the run goes on; nothing wrong is ever read from it."""

import logging
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.evaluation.store.store import EvaluationStore
from tests.evaluation.records import many, record


def truncate(path):
    os.truncate(path, path.stat().st_size - 4096)


def tear(path):
    os.truncate(path, 1000)


def garbage(path):
    path.write_bytes(b"not a database at all\n" * 1000)


def garble_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def key_out_of_order(path):
    key = b"asearch" + "".join(f"{w}{a}" for w, a in many(400)[150].bits).encode()
    content = path.read_bytes()
    assert content.count(key) == 1
    path.write_bytes(content.replace(key, b"z" + key[1:]))


def other_columns(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE quantenv_evaluations_2")
        connection.execute("CREATE TABLE quantenv_evaluations_2 (identity TEXT, accuracy REAL)")
    connection.close()


def another_value(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE quantenv_evaluations_2 SET correct = 3")
    connection.close()


def another_type(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE quantenv_evaluations_2 SET loss = 'x'")
    connection.close()


def no_table(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE quantenv_evaluations_2")
    connection.close()


STRUCTURAL = [truncate, tear, garbage, garble_pages, key_out_of_order, other_columns]
CHANGED_ROWS = [another_value, another_type]


def aside(path):
    return [p for p in path.parent.glob(f"{path.name}.damaged-*") if not p.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize("damage", STRUCTURAL)
def test_damage_is_found_on_opening(path, caplog, damage):
    first = EvaluationStore(str(path))
    first.add_all(many(400))
    first.close()
    damage(path)
    damaged = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        store = EvaluationStore(str(path))
    (moved,) = aside(path)
    assert moved.read_bytes() == damaged
    assert "was moved aside" in caplog.text
    assert str(moved) in caplog.text
    assert store.count() == 0
    store.add_all(many(400))
    assert EvaluationStore(str(path)).count() == 400
    assert len(aside(path)) == 1


@pytest.mark.parametrize("damage", [*STRUCTURAL, *CHANGED_ROWS])
def test_damage_is_found_during_use(path, caplog, damage):
    store = EvaluationStore(str(path))
    store.add_all(many(400))
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    damage(path)
    bits = [r.bits for r in many(400)]
    found = store.find("a", "search", bits)
    expected = {r.bits: r.evaluation for r in many(400)}
    assert found.items() <= expected.items()  # SQLite may hold pages in memory, but never is anything wrong
    store.add_all(many(400))
    assert store.find("a", "search", bits) == expected
    store.close()
    again = EvaluationStore(str(path))
    again.add_all(many(400))
    assert again.find("a", "search", bits) == expected
    assert len(aside(path)) == 1


def test_a_table_dropped_during_use_is_made_again(path):
    store = EvaluationStore(str(path))
    store.add_all(many(10))
    no_table(path)
    store.add_all(many(10))
    assert store.count() == 10


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_flipped_bytes_never_give_a_wrong_evaluation(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "e.sqlite"
    store = EvaluationStore(str(path))
    store.add_all(many(64))
    store.close()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    expected = {r.bits: r.evaluation for r in many(64)}
    store = EvaluationStore(str(path))
    assert store.find("a", "search", list(expected)).items() <= expected.items()
    store.add_all(many(64))
    assert store.find("a", "search", list(expected)) == expected


def like_a_newer_format(path, offset):
    store = EvaluationStore(str(path))
    store.add_all(many(3))
    store.close()
    content = bytearray(path.read_bytes())
    content[offset] = 141
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [18, 19])
def test_a_header_that_looks_read_only_or_foreign_is_damage(path, offset):
    like_a_newer_format(path, offset)
    store = EvaluationStore(str(path))
    store.add_all(many(3))
    assert store.count() == 3
    assert len(aside(path)) == 1


def test_a_file_that_the_system_does_not_let_us_write_is_no_damage(path, monkeypatch):
    like_a_newer_format(path, 18)
    monkeypatch.setattr("os.access", lambda part, mode: False)
    with pytest.raises(QuantenvError, match="readonly database"):
        EvaluationStore(str(path)).add_all(many(4))
    assert not aside(path)


def test_a_file_that_vanishes_or_is_moved_by_another_process_is_begun_anew(path):
    store = EvaluationStore(str(path))
    store.add_all(many(10))
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(path.parent / f"elsewhere{suffix}")
    store.add(record())
    assert store.count() == EvaluationStore(str(path)).count() == 1
    assert EvaluationStore(str(path.parent / "elsewhere")).count() == 10


def test_two_that_find_the_same_damage_move_it_once(path):
    left, right = EvaluationStore(str(path)), EvaluationStore(str(path))
    left.add_all(many(400))
    left.close()
    right.close()
    garbage(path)
    for store in (left, right):
        store.add_all(many(400))
        assert store.count() == 400
    assert len(aside(path)) == 1


def test_a_file_that_never_was_a_store_is_left_alone(tmp_path):
    text = tmp_path / "README.md"
    text.write_text("# Something else\n" * 100)
    with pytest.raises(QuantenvError, match="is not an SQLite database"):
        EvaluationStore(str(text))
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["README.md"]


def test_damage_can_be_an_error(path):
    store = EvaluationStore(str(path))
    store.add_all(many(400))
    store.close()
    garbage(path)
    with pytest.raises(QuantenvError, match="is damaged"):
        EvaluationStore(str(path), replace_damaged=False)
    assert not aside(path)
