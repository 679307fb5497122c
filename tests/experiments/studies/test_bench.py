"""`make bench` runs, part by part, and keeps what it has measured. The figures themselves are not tested."""

import importlib.metadata
import itertools
import json
from contextlib import contextmanager

import pytest
import torch

from experiments.studies import bench, bench_enumeration, bench_evaluator, bench_prefix, bench_store, bench_tasks
from experiments.studies.bench_evaluator import HAQEvaluator
from experiments.studies.bench_options import BenchOptions
from experiments.studies.harness import Claim, NotMeasured, interleave, ratio, spread
from experiments.studies.postgres_server import NotInstalledError
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.tasks import get_task
from quantenv.tasks.resnet20 import DATA_VARIABLE

TINY = (
    "--images=2",
    "--threads=1",
    "--rounds=1",
    "--rows=4",
    "--num_envs=4",
    "--seconds=0.01",
    "--kills=1",
    "--evaluations=20",
    "--stored=300",
)


def run(folder, *arguments):
    """Runs parts and returns what is in the results then."""
    assert bench.main([*TINY, f"--output={folder}", *arguments]) == 0
    return json.loads((folder / "bench.json").read_text())["parts"]


@pytest.fixture
def two_parts(monkeypatch):
    """Two parts, of which the second stops the process as long as the returned list holds something."""
    trouble = [KeyboardInterrupt()]

    def second(options):
        if trouble:
            raise trouble[0]
        return {"seed": options.seed}

    def claims(measured):
        return [Claim("a seed", ">= 1", str(measured["seed"]), measured["seed"] >= 1)]

    def make(measure):
        return bench.Part("Title", measure, claims, lambda measured: f"seed {measured['seed']}\n")

    monkeypatch.setattr(bench, "PARTS", {"one": make(lambda options: {"seed": options.seed}), "two": make(second)})
    return trouble


@contextmanager
def no_server():
    raise NotInstalledError("there is none.")
    yield


@pytest.fixture
def small_images(monkeypatch):
    """Few small images and small batches, whatever data are here: every network is timed, none for long."""
    digits = bench_tasks._first_images(get_task("digits"), 20)
    for module in (bench_evaluator, bench_prefix):
        monkeypatch.setattr(module, "get_task", {"digits": digits}.__getitem__)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr(bench_tasks, "SIZE", 8)
    monkeypatch.setattr(bench_tasks, "OTHERS", 8)
    monkeypatch.setattr(bench_evaluator, "TAIL", (2, 8))
    monkeypatch.setattr(bench_prefix, "BATCHES", (2, 3))
    bench_tasks.timed_resnet20.cache_clear()
    yield
    bench_tasks.timed_resnet20.cache_clear()


def test_every_part_is_measured_and_written(tmp_path, capsys, monkeypatch, small_images):
    monkeypatch.setattr(bench_store, "postgres_server", no_server)
    names = [name for name in bench.PARTS if name not in ("agreement", "rows", "enumeration")]
    parts = run(tmp_path, f"--only={','.join(reversed(names))}")
    assert list(parts) == names
    for part in parts.values():
        assert part["measured"]
        assert part["claims"]
        assert part["environment"]["packages"]["torch"] == importlib.metadata.version("torch")
        assert part["environment"]["cpu_flags"]
        assert part["options"]["rounds"] == 1
    table = (tmp_path / "bench.md").read_text()
    assert capsys.readouterr().out == table
    assert table.count("\n## ") == len(names)
    assert "| resnet20 | HAQ's way |" in table
    assert "PostgreSQL was not measured: there is none." in table


def test_an_interrupted_benchmark_keeps_what_it_has_and_is_taken_up(tmp_path, two_parts):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert list(json.loads((tmp_path / "bench.json").read_text())["parts"]) == ["one"]
    two_parts.clear()
    parts = run(tmp_path, "--only=two", "--seed=1")
    assert [part["measured"]["seed"] for part in parts.values()] == [0, 1]
    rows = [line for line in (tmp_path / "bench.md").read_text().splitlines() if "a seed" in line]
    assert rows == ["| one | a seed | >= 1 | 0 | **no** |", "| two | a seed | >= 1 | 1 | yes |"]


def test_a_part_that_cannot_run_here_says_why(tmp_path, two_parts):
    two_parts[0] = NotMeasured("no such machine")
    parts = run(tmp_path)
    assert parts["two"]["measured"] == {}
    assert "| two | Title |  | not measured: no such machine |  |" in (tmp_path / "bench.md").read_text()


def test_mistakes_are_refused(tmp_path, two_parts):
    with pytest.raises(QuantenvError, match=r"'three'.*one, two"):
        run(tmp_path, "--only=one,three")
    assert not (tmp_path / "bench.json").exists()
    (tmp_path / "bench.json").write_text("[]")
    with pytest.raises(QuantenvError, match="does not fit"):
        run(tmp_path, "--only=one")


def test_a_password_is_not_written_down(tmp_path, two_parts):
    run(tmp_path, "--only=one", "--url=postgresql://user:secret@host/name")
    assert "secret" not in (tmp_path / "bench.json").read_text()


def test_subjects_take_turns_and_ratios_are_of_the_same_round():
    turns = []

    def subject(name, items):
        return lambda: turns.append(name) or items

    seconds = interleave({"a": subject("a", 1), "b": subject("b", 1000)}, 3)
    assert turns == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert ratio([1, 4, 9], [1, 2, 3]) == {"median": 2, "least": 1, "greatest": 3}
    assert spread([5, 1, 2]) == {"median": 2, "least": 1, "greatest": 5}


def test_haqs_way_starts_from_the_float_weights_every_time():
    task = get_task("digits")
    evaluator, inputs = HAQEvaluator(task), task.splits["search"].inputs
    fine, coarse = (Allocation.make(task.layers, bits) for bits in (8, 2))
    first = evaluator.evaluate(fine, inputs, 450)
    assert (evaluator.evaluate(coarse, inputs, 450).argmax(1) == first.argmax(1)).float().mean() < 0.9
    assert torch.equal(evaluator.evaluate(fine, inputs, 450), first)
    with torch.no_grad():
        expected = task.network(inputs)
    assert (first.argmax(1) == expected.argmax(1)).float().mean() > 0.97


def test_the_enumeration_is_run_as_users_run_it():
    measured = bench_enumeration.measure(BenchOptions(enumerations=1, workers=1), bits="4,8")
    assert measured["rows"] == 2**8
    assert measured["rows_per_second"]["median"] == pytest.approx(256 / measured["seconds"]["median"])
    assert "`quantenv enumerate --task=digits --bits=4,8 --workers=1`" in bench_enumeration.to_markdown(measured)


def test_a_store_that_loses_something_does_not_meet_its_claim():
    sound = {"kills": 2, "begun": 9, "stored": 8, "in_flight_lost": 1}
    sound |= {"completed_lost": 0, "evaluated_again": 0, "wrong": 0}
    writers = {"distinct": 5, "begun": 6, "stored": 5, "wrong": 0, "failed": 0}
    once = {"median": 1.0, "least": 1.0, "greatest": 1.0}

    def met(kills, writers):
        parts = {"kills": kills, "writers": writers, "microseconds": {"find one": once, "add one": once}}
        claims = bench_store.claims({"databases": {"SQLite": parts}, "not_measured": {"PostgreSQL": "not installed"}})
        assert claims[-1] == Claim("PostgreSQL", "", "not measured: not installed")
        return [claim.met for claim in claims[:2]]

    assert met(sound, writers) == [True, True]
    for name, change in itertools.product(("completed_lost", "evaluated_again", "wrong", "stored"), (1,)):
        assert met(sound | {name: sound[name] + change}, writers) == [False, True]
    assert met(sound, writers | {"stored": 6}) == [True, False]
