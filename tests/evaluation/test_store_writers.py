"""Several threads and processes on one store, and what stands in their way."""

import multiprocessing
import sqlite3
import threading

import pytest
import sqlalchemy as sa

from quantenv.core.errors import QuantenvError
from quantenv.evaluation.store import database
from quantenv.evaluation.store.store import EvaluationStore
from tests.evaluation.records import many, record


def test_threads_share_a_store(store):
    threads = [threading.Thread(target=store.add_all, args=(many(200)[i : i + 100],)) for i in range(0, 150, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 200


def add_one_by_one(store, items):
    for item in items:
        store.add(item)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_opened_before_a_process_begins_works_in_it(store, method):
    store.add_all(many(5))
    context = multiprocessing.get_context(method)
    process = context.Process(target=add_one_by_one, args=(store, many(20)))
    process.start()
    add_one_by_one(store, many(30))
    process.join()
    assert process.exitcode == 0
    assert store.count() == 30
    assert [r.evaluation for r in store.records()] == [r.evaluation for r in sorted(many(30), key=lambda r: r.bits)]


def test_a_lock_is_waited_for_and_in_the_end_said(store, path, monkeypatch):
    monkeypatch.setattr(database, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    impatient = EvaluationStore(str(path))
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(QuantenvError, match="locked"):
        impatient.add(record())
    release = threading.Timer(0.3, blocker.execute, ["ROLLBACK"])
    release.start()
    store.add(record())
    release.join()
    assert store.count() == 1


def test_a_full_disk_is_said(store, monkeypatch):
    class Full(sqlite3.OperationalError):
        sqlite_errorcode = sqlite3.SQLITE_FULL

    def fail(connection):
        raise sa.exc.OperationalError("INSERT", {}, Full("database or disk is full"))

    with pytest.raises(QuantenvError, match="disk is full"):
        store._database.run(fail)
