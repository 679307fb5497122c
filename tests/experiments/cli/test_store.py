import json
import sqlite3
import time

import pytest

from experiments.cli.main import main
from quantenv.core.records import sealed
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.store.store import EvaluationStore, Record
from tests.experiments.cli.test_train import RESULTS, cut, results
from tests.experiments.conftest import SHORT, run_train


def records(identity, count, created=1e9, split="search"):
    return [
        Record(identity, split, ((1 + i % 8, 8), (1 + i // 8, 4)), Evaluation(i, 64, i / 7), "t", created)
        for i in range(count)
    ]


@pytest.fixture
def path(tmp_path):
    location = str(tmp_path / "evaluations.sqlite")
    store = EvaluationStore(location)
    store.add_all([*records("aa", 30), *records("bb", 12, time.time()), *records("bb", 5, split="test")])
    store.close()
    return location


def output(capsys, *arguments):
    capsys.readouterr()
    assert main(["store", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_info_lists_what_there_is(path, capsys, monkeypatch):
    text = output(capsys, "info", f"--store={path}")
    assert text.startswith(f"{path}: 47 evaluations, ")
    assert "KiB" in text
    assert "│ t │ aa │ search │ 30 │ 2001-09-" in text
    assert "│ t │ bb │ test │ 5 │ 2001-09-" in text
    monkeypatch.setenv("QUANTENV_STORE", path)
    assert output(capsys, "info") == text


def test_what_is_exported_merges_into_the_same_store(path, tmp_path, capsys):
    file, other = tmp_path / "out.jsonl", str(tmp_path / "other.sqlite")
    assert "47 evaluations" in output(capsys, "export", str(file), f"--store={path}")
    header, first, *_ = map(json.loads, file.read_text().splitlines())
    assert header == sealed({"format": "quantenv-evaluations-2"})
    result = {"correct": 0, "samples": 64, "loss": 0.0}
    where = {"identity": "aa", "split": "search", "bits": [[1, 8], [1, 4]], "task": "t", "created": 1e9}
    assert first == sealed({**where, **result}, header["checksum"])
    assert "47 new evaluations, 0 were" in output(capsys, "merge", str(file), f"--store={other}")
    assert "0 new evaluations, 47 were" in output(capsys, "merge", path, f"--store={other}")
    assert list(EvaluationStore(other).records()) == list(EvaluationStore(path).records())


def test_export_of_one_identity_and_merge_of_a_store(path, tmp_path, capsys):
    file = tmp_path / "out.jsonl"
    assert "17 evaluations" in output(capsys, "export", str(file), "--identity=bb", f"--store={path}")
    other = str(tmp_path / "other.sqlite")
    EvaluationStore(other).add_all(records("aa", 40))
    assert "10 new evaluations, 30 were" in output(capsys, "merge", other, f"--store={path}")
    assert EvaluationStore(path).count() == 57
    assert "0 new evaluations, 57 were" in output(capsys, "merge", f"sqlite:///{path}", f"--store={path}")


def test_contradictions_are_refused_and_nothing_is_merged(path, tmp_path, refused):
    other = str(tmp_path / "other.sqlite")
    EvaluationStore(other).add_all(
        [*records("00", 3), Record("aa", "search", ((1, 8), (1, 4)), Evaluation(9, 64, 0.0))]
    )
    assert "'aa', split 'search', bits '1814' has two values" in refused("store", "merge", other, f"--store={path}")
    assert EvaluationStore(path).count("00") == 0


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text[:-20], "line 49"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "is truncated"),
        (lambda text: "".join(text.splitlines(keepends=True)[:20]), "is truncated"),
        (lambda text: "".join(text.splitlines(keepends=True)[:9] + text.splitlines(keepends=True)[10:]), "line 10"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "line 50"),
        (lambda text: "[" * 5000 + "\n" + text, "line 1"),
        (lambda text: text.replace("evaluations-2", "evaluations-9"), "line 1"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace('"loss": 0.0', '"loss": "x"', 1), "line 2"),
        (lambda text: text.replace("[[1, 8]", "[[9, 8]", 1), "line 2"),
        (lambda text: text.replace('"correct": 0', '"correct": 65', 1), "line 2"),
        (lambda text: text.replace('"identity"', '"idnetity"', 1), "line 2"),
    ],
)
def test_damaged_exports_are_refused_with_their_line(path, tmp_path, refused, capsys, damage, expected):
    file = tmp_path / "out.jsonl"
    output(capsys, "export", str(file), f"--store={path}")
    file.write_text(damage(file.read_text()))
    other = str(tmp_path / "other.sqlite")
    assert expected in refused("store", "merge", str(file), f"--store={other}")
    assert EvaluationStore(other).count() == 0


def test_a_damaged_source_is_refused_and_left_alone(path, tmp_path, refused):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE quantenv_evaluations_2 SET correct = 1")
    connection.close()
    sentence = refused("store", "merge", path, f"--store={tmp_path / 'other.sqlite'}")
    assert "is damaged" in sentence
    assert EvaluationStore(path, replace_damaged=False).bytes_used() > 0


def test_prune_asks_first(path, capsys, refused):
    question = refused("store", "prune", "--identity=bb", f"--store={path}")
    assert "would delete 17 of 47" in question
    assert "--yes" in question
    assert EvaluationStore(path).count() == 47
    assert "Deleted 17" in output(capsys, "prune", "--identity=bb", "--yes", f"--store={path}")
    assert EvaluationStore(path).count() == 30


def test_prune_by_age(path, capsys, refused):
    assert "would delete 35 of 47" in refused("store", "prune", "--older_than_days=1", f"--store={path}")
    line = ["prune", "--older_than_days=1", "--identity=bb", "--yes", f"--store={path}"]
    assert "Deleted 5" in output(capsys, *line)
    assert "Deleted 0" in output(capsys, *line)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inof"], "Did you mean 'info'"),
        (["info", "--stroe=x"], "Did you mean '--store'"),
        (["info"], "The store is off"),
        (["info", "--store=/"], "is a folder"),
        (["export", "--store=x.sqlite"], "FILE"),
        (["merge", "missing", "--store=x.sqlite"], "exported file missing: No such file"),
        (["merge", "nosuch://host/x", "--store=x.sqlite"], "knows no database"),
        (["prune", "--yes", "--store=x.sqlite"], "--identity, --older_than_days or both"),
        (["prune", "--older_than_days=-1"], "at least 0"),
        (["export", "/proc/no/file", "--store=x.sqlite"], "/proc/no/file"),
    ],
)
def test_mistakes_are_one_sentence(arguments, expected, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused("store", *arguments)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_action(arguments, capsys):
    text = output(capsys, *arguments)
    assert all(name in text for name in ("info", "export", "merge", "prune"))


def test_help_of_an_action(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["store", "prune", "--help"])
    assert stop.value.code == 0
    assert "--older_than_days" in capsys.readouterr().out


# Training through the store --------------------------------------------------------------------------------


def test_runs_through_the_store_end_the_same_and_resume_exactly(finished, tmp_path, monkeypatch, capsys):
    location = f"--store={tmp_path / 'e.sqlite'}"
    assert results(run_train(tmp_path / "first", *SHORT, location)) == results(finished)
    stored = EvaluationStore(str(tmp_path / "e.sqlite")).count()
    assert stored > 20

    evaluate = PTQEvaluator.evaluate
    computed = []

    def counting(self, allocations, split="search"):
        computed.extend(allocations)
        return evaluate(self, allocations, split)

    monkeypatch.setattr(PTQEvaluator, "evaluate", counting)
    folder = run_train(tmp_path / "second", *SHORT, location)
    assert results(folder) == results(finished)
    assert not computed
    cut(folder, 17)
    assert main(["train", "--resume", str(folder), location]) == 0
    assert results(folder) == results(finished)
    assert set(RESULTS) <= {path.name for path in folder.iterdir()}
    assert main(["validate", str(folder), "--sample=3"]) == 0
    assert computed  # validating computes, it does not look up
