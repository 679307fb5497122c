"""Runs on a table task: no network, so no fine-tuning, and the regret is known."""

import shutil

import pytest

from experiments.cli.main import main
from experiments.runs.run_folder import RunFolder
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.table.optimum import optimum
from tests.experiments.conftest import run_train
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(5, groups=[[0, 3], [1], [2, 4]], bits=(2, 4, 6, 8))
ARGUMENTS = ("--agent=random", "--evaluations=30", "--budget=0.6", "--top_k=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    TABLE.save(folder / "mine.npz")
    return run_train(folder / "runs", f"--task={folder / 'mine.npz'}", *ARGUMENTS)


def test_the_report_is_complete_and_says_what_it_lacks(run):
    report = RunFolder(run).read_report()
    assert report.complete
    assert [(row.name, row.stage) for row in report.rows] == [
        ("float", ""),
        ("uniform 8", "post-training"),
        ("best uniform", "post-training"),
        ("found", "post-training"),
    ]
    assert report.rows[0].correct == 950
    found = Allocation.from_dict(report.rows[-1].allocation)
    assert report.rows[-1].evaluation == TABLE.evaluation(TABLE.index(found), "test")
    env = QuantizationEnv(TABLE, budget=0.6)
    best = optimum(TABLE, env.budgets, env.tables).best.evaluation
    regret = best.accuracy - TABLE.evaluation(TABLE.index(found)).accuracy
    assert f"the regret of found is {100 * regret:.2f} points" in report.notes[-1]
    assert "no network to fine-tune" in report.notes[-2]
    assert run.parent.parent.name == "mine"


def test_what_was_found_is_for_the_task_that_was_enumerated(run):
    assert Allocation.load(run / "best.json").task == "synthetic"


def test_what_observations_showed_is_in_the_report(run, tmp_path):
    assert RunFolder(run).read_report().measured_evaluations == 0  # random reads none
    arguments = (f"--task={run.parent.parent.parent.parent / 'mine.npz'}", "--agent=reinforce", "--evaluations=4")
    reading = RunFolder(run_train(tmp_path, *arguments, "--budget=0.6"))
    report = reading.read_report()
    assert report.measured_evaluations == len(TABLE.layers) + 1
    assert "4 evaluations (+6.0 measured)" in reading.report.with_suffix(".md").read_text()
    assert any("cost as much as 6.0 evaluations" in note for note in report.notes)


def test_it_validates(run, capsys):
    assert main(["validate", str(run), "--all"]) == 0
    assert "everything agrees" in capsys.readouterr().out


def test_it_resumes(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.iterdir():
        if path.name not in ("config.yaml", "environment.json", "episodes.jsonl"):
            path.unlink()
    lines = (run / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "episodes.jsonl").write_bytes(b"".join(lines[:11]))
    assert main(["train", f"--resume={copy}"]) == 0
    for name in ("episodes.jsonl", "report.json", "best.json", "top_k.json"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


def test_another_evaluator_is_refused(refused, tmp_path):
    TABLE.save(tmp_path / "mine.npz")
    sentence = refused("train", f"--task={tmp_path / 'mine.npz'}", "--evaluator=finetune", f"--runs={tmp_path}")
    assert "holds evaluations by 'ptq'" in sentence
