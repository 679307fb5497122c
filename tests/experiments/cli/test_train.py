import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.main import main
from experiments.options.signals import GracefulStop
from experiments.runs.episodes import read_episodes
from experiments.runs.run_folder import RunFolder
from experiments.runs.top_k import TopK
from quantenv.core.allocation import Allocation
from quantenv.evaluation import make_evaluator
from quantenv.hardware import Budget
from quantenv.tasks import get_task
from tests.digits import FEW_DIGITS
from tests.experiments.conftest import SHORT, run_train
from tests.resealing import change_json, change_lines

#: Files that must be the same, to the byte, however often a run was interrupted.
RESULTS = ("episodes.jsonl", "top_k.json", "best.json", "report.json", "report.md")


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def cut(folder: Path, evaluations: int, torn: bytes = b"") -> None:
    """Makes a finished run look as if it had been killed after some evaluations."""
    for path in folder.iterdir():
        if path.name not in ("config.yaml", "environment.json", "episodes.jsonl", "prepared.safetensors"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = (folder / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "episodes.jsonl").write_bytes(b"".join(lines[:evaluations]) + torn)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.cli.main", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_evaluations(process: subprocess.Popen[str], runs: Path, evaluations: int) -> Path:
    """Waits until a running search has recorded so many evaluations and returns its folder."""
    while process.poll() is None:
        for path in runs.glob("*/*/*/episodes.jsonl"):
            if path.read_bytes().count(b"\n") >= evaluations:
                return path.parent
        time.sleep(0.01)
    raise AssertionError(f"ended too early: {process.communicate()}")


def test_a_run_leaves_every_file_of_the_design(finished):
    for name in (*RESULTS, "config.yaml", "environment.json", "agent.safetensors", "finetuned.safetensors"):
        assert (finished / name).stat().st_size > 0
    assert len(list(finished.glob("events.out.tfevents.*"))) == 1


def test_every_evaluation_is_recorded_and_true(finished):
    episodes, _ = read_episodes(finished / "episodes.jsonl")
    assert len(episodes) == 40
    task = get_task(FEW_DIGITS)
    evaluator = make_evaluator("ptq", task)
    for episode in episodes[::8]:
        (again,) = evaluator.evaluate([episode.allocation(task.layers)])
        assert (again.correct, again.samples, again.loss) == (episode.correct, episode.samples, episode.loss)
        size = sum(layer.params * w / 8 for layer, (w, _) in zip(task.layers, episode.bits, strict=True))
        assert episode.costs["size"] == pytest.approx(size, rel=1e-12)
        assert episode.feasible
        assert size <= 0.4 * sum(layer.params for layer in task.layers)


def test_best_and_top_k_are_the_best_of_the_episodes(finished):
    episodes, _ = read_episodes(finished / "episodes.jsonl")
    report = RunFolder(finished).read_report()
    top = TopK(3, [Budget(metric, limit) for metric, limit in report.budgets.items()])
    for episode in episodes:
        top(episode)
    assert max(episode.accuracy for episode in episodes) == top.best.accuracy
    best = Allocation.load(finished / "best.json")
    assert best.bits == top.best.bits
    assert best.task == FEW_DIGITS
    entries = json.loads((finished / "top_k.json").read_text())["entries"]
    assert [entry["evaluation"] for entry in entries] == [episode.evaluation for episode in top.episodes]


def test_the_table_has_every_row_on_the_test_split(finished):
    report = RunFolder(finished).read_report()
    assert report.complete
    assert [(row.name, row.stage) for row in report.rows] == [
        ("float", ""),
        ("uniform 8", "post-training"),
        ("best uniform", "post-training"),
        ("best uniform", "QAT"),
        ("found", "post-training"),
        ("found", "QAT"),
    ]
    task = get_task(FEW_DIGITS)
    assert {row.samples for row in report.rows} == {len(task.splits["test"])}
    assert [row.within_budget for row in report.rows[2:]] == [True] * 4
    found = report.row("found", "post-training")
    (again,) = make_evaluator("ptq", task).evaluate([Allocation.load(finished / "best.json")], "test")
    assert found.evaluation == again
    assert len(report.verdicts) == 2


def test_same_seed_same_run_and_other_seed_other_run(finished, tmp_path):
    assert results(run_train(tmp_path, *SHORT)) == results(finished)
    other = run_train(tmp_path, *SHORT, "--seed=1", "--evaluations=10")
    lines = [folder.joinpath("episodes.jsonl").read_bytes().splitlines()[:10] for folder in (other, finished)]
    assert lines[0] != lines[1]


def test_a_run_repeats_from_its_config(finished, tmp_path):
    again = run_train(tmp_path, f"--config={finished / 'config.yaml'}", f"--runs={tmp_path}")
    assert results(again) == results(finished)


@pytest.mark.parametrize("evaluations", [0, 17, 40])
def test_resuming_anywhere_ends_like_the_unbroken_run(finished, run_copy, evaluations):
    cut(run_copy, evaluations, torn=b'{"evaluation": 99, "bi')
    assert main(["train", "--resume", str(run_copy)]) == 0
    assert results(run_copy) == results(finished)
    assert len(list(run_copy.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("agent", ["ddpg", "ppo", "random"])
def test_every_agent_resumes(agent, tmp_path):
    options = (f"--task={FEW_DIGITS}", f"--agent={agent}", "--evaluations=40", "--qat.epochs=0")
    unbroken = run_train(tmp_path / "unbroken", *options)
    resumed = tmp_path / "resumed"
    shutil.copytree(unbroken, resumed)
    cut(resumed, 25)
    assert main(["train", "--resume", str(resumed)]) == 0
    assert results(resumed) == results(unbroken)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_resumes_to_the_same_end(finished, tmp_path, seed):
    process = start(f"--runs={tmp_path}", *SHORT)
    folder = wait_for_evaluations(process, tmp_path, random.Random(seed).randint(1, 35))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "report.json").exists()
    assert main(["train", "--resume", str(folder)]) == 0
    assert results(folder) == results(finished)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_it_found_and_resumes(finished, tmp_path, number, code):
    process = start(f"--runs={tmp_path}", *SHORT)
    folder = wait_for_evaluations(process, tmp_path, 5)
    process.send_signal(number)
    _, announcements = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in announcements
    assert f"quantenv train --resume {folder}" in announcements
    episodes, _ = read_episodes(folder / "episodes.jsonl")
    assert 5 <= len(episodes) < 40
    report = RunFolder(folder).read_report()
    assert not report.complete
    assert report.evaluations == len(episodes)
    assert {row.stage for row in report.rows} == {"", "post-training"}
    assert Allocation.load(folder / "best.json")
    assert main(["validate", str(folder)]) == 0
    assert main(["train", "--resume", str(folder)]) == 0
    assert results(folder) == results(finished)


def test_an_interruption_while_fine_tuning_leaves_the_rest(run_copy, monkeypatch, capsys):
    cut(run_copy, 40)
    original = GracefulStop.check

    def check(self, *arguments):
        if not arguments:  # called between epochs, not with an episode
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    monkeypatch.setattr(GracefulStop, "check", check)
    assert main(["train", "--resume", str(run_copy)]) == 143
    assert "before fine-tuning was done" in capsys.readouterr().err
    report = RunFolder(run_copy).read_report()
    assert report.row("found", "post-training") is not None
    assert report.row("found", "QAT") is None


def test_resuming_a_finished_run_prints_its_table(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert main(["train", "--resume", str(finished)]) == 0
    captured = capsys.readouterr()
    assert "best uniform" in captured.out
    assert "is finished" in captured.err
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_resuming_takes_no_other_options(finished, refused):
    assert "--budget cannot be given" in refused("train", "--resume", str(finished), "--budget=0.5")


def test_resuming_under_another_evaluator_is_refused(run_copy, refused):
    cut(run_copy, 10)
    identity = {"evaluator_identity": "0123456789abcdef"}
    change_json(run_copy / "environment.json", lambda environment: environment.update(identity))
    assert "identity 0123456789abcdef" in refused("train", "--resume", str(run_copy))


def test_resuming_with_other_versions_says_so(run_copy, capsys):
    cut(run_copy, 38)
    change_json(run_copy / "environment.json", lambda environment: environment["packages"].update(torch="1.0"))
    assert main(["train", "--resume", str(run_copy)]) == 0
    assert "instead of 1.0" in capsys.readouterr().err


def test_resuming_a_changed_record_is_refused(run_copy, refused):
    cut(run_copy, 10)

    def change(number, episode):
        if number == 5:
            episode["bits"][0][0] = 2 if episode["bits"][0][0] != 2 else 3

    change_lines(run_copy / "episodes.jsonl", change)
    assert "evaluation 5 replays to other bits" in refused("train", "--resume", str(run_copy))


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "episodes.jsonl"])
def test_resuming_a_damaged_folder_is_refused(run_copy, refused, name):
    cut(run_copy, 10)
    content = (run_copy / name).read_bytes()
    (run_copy / name).write_bytes(b"\0" + content[10:])
    assert name in refused("train", "--resume", str(run_copy))


def test_nothing_feasible_is_said_and_not_an_error(tmp_path, capsys):
    run_train(
        tmp_path,
        f"--task={FEW_DIGITS}",
        "--agent=random",
        "--evaluations=2",
        "--constraint=reject",
        "--budget=0.26",
        "--qat.epochs=0",
    )
    assert "The search found no feasible allocation." in capsys.readouterr().out.replace("\n", " ")


def test_options_reach_the_environment(tmp_path):
    folder = run_train(
        tmp_path,
        f"--task={FEW_DIGITS}",
        "--agent=random",
        "--evaluations=3",
        "--decisions=joint",
        "--budget=size=0.6,bops=0.5",
        "--bits=[2,4,8]",
        "--pinned=first_last",
        "--qat.epochs=0",
    )
    episodes, _ = read_episodes(folder / "episodes.jsonl")
    for episode in episodes:
        assert episode.bits[0] == episode.bits[-1] == (8, 8)
        assert {bit for pair in episode.bits for bit in pair} <= {2, 4, 8}
    report = RunFolder(folder).read_report()
    assert list(report.budgets) == ["size", "bops"]
