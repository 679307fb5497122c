import logging
import signal
import sys
from functools import partial

import pytest
import ray

from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator, make_pool
from quantenv.evaluation.pool.pool import PoolEvaluator
from quantenv.evaluation.pool.ray import RayWorkers
from quantenv.evaluation.pool.workers import start_workers
from quantenv.evaluation.store.store import EvaluationStore
from quantenv.tasks import get_task
from tests.evaluation.fragile import batch, deaths, evaluations, refuses, stored_fragile
from tests.synthetic import AdditiveEvaluator


@pytest.fixture(scope="module")
def cluster():
    """A local cluster of two CPUs, begun by workers themselves; all tests share it."""
    before = signal.getsignal(signal.SIGTERM)
    with RayWorkers(AdditiveEvaluator, 1, threads=2) as workers:
        assert signal.getsignal(signal.SIGTERM) is before
        assert ray.cluster_resources()["CPU"] == 2
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"  # nobody else may run code here
        workers._workers[0].stop()  # its CPUs are for the tests
        yield
    assert not ray.is_initialized()


def test_an_actor_killed_in_mid_run_changes_nothing(cluster, tmp_path, caplog):
    task, location = get_task("digits"), str(tmp_path / "evaluations.sqlite")
    serial = make_evaluator("ptq", task, "off")
    wanted = batch(serial.layers, 24)
    with make_pool("ptq", task, location, workers=1, threads=1, pool="ray") as pool:
        assert (pool.identity, pool.layers, pool.reference) == (serial.identity, serial.layers, serial.reference)
        assert pool.evaluate(wanted[:8], "test") == serial.evaluate(wanted[:8], "test")
        victim, killed = pool.workers._workers[0], []
        submit = victim.submit

        def submit_and_kill(function, job):  # while it is at work: a worker that is idle is not missed
            result = submit(function, job)
            ray.kill(victim._actor)
            killed.append(len(job[0]))
            return result

        victim.submit = submit_and_kill
        with caplog.at_level(logging.WARNING, "quantenv"):
            assert pool.evaluate(wanted) == serial.evaluate(wanted)
    assert killed == [12]  # allocations, half of the batch
    assert "Worker 1 of 1 died" in caplog.text
    assert "attempt 2 of 3" in caplog.text
    assert EvaluationStore(location).count() == 32
    assert ray.is_initialized()  # it was there before this pool


def test_a_death_over_a_piece_loses_nothing_and_errors_keep_their_message(cluster, tmp_path):
    wanted = batch(AdditiveEvaluator().layers, poisoned=[5])
    location = str(tmp_path / "evaluations.sqlite")
    make = partial(stored_fragile, folder=str(tmp_path), deaths=1, location=location)
    with PoolEvaluator(RayWorkers(make, 2, 1), EvaluationStore(location)) as pool:
        assert pool.evaluate(wanted) == AdditiveEvaluator().evaluate(wanted)
        assert (deaths(tmp_path), evaluations(tmp_path)) == (1, 40)
        with pytest.raises(QuantenvError, match=r"^the disk is full$") as caught:
            list(pool.workers.map(refuses, [()]))
        assert type(caught.value) is QuantenvError


def test_a_cluster_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(QuantenvError, match=r"Cannot use a Ray cluster at '127\.0\.0\.1:1': .*refused"):
        RayWorkers(AdditiveEvaluator, 1, address="127.0.0.1:1")


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "quantenv.evaluation.pool.ray")
    with pytest.raises(QuantenvError, match=r"pip install 'quantenv\[ray\]'"):
        start_workers(dict, 1, pool="ray")
