"""The benchmarks run, and what they write is what they print. Their figures are not tested."""

import json

from experiments import agents_vs_uniform, bench_evaluator, regret_curves


def test_agents_vs_uniform_writes_a_row_for_every_search(tmp_path, capsys):
    arguments = ["--agents=[random]", "--budgets=[0.5]", "--seeds=[0,1]", "--evaluations=3", "--workers=1"]
    assert agents_vs_uniform.main([*arguments, f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "agents_vs_uniform.json").read_text())
    assert [(row["agent"], row["seed"]) for row in content["results"]] == [
        ("best uniform", None),
        ("random", 0),
        ("random", 1),
    ]
    assert all(row["cost_ratio"] <= 0.5 for row in content["results"])
    table = (tmp_path / "agents_vs_uniform.md").read_text()
    assert capsys.readouterr().out == table
    assert table.count("| 0.5 |") == 2


def test_the_evaluator_benchmark_measures_every_backend(tmp_path, capsys):
    assert bench_evaluator.main(["--images=8", "--repeats=1", "--threads=1", f"--output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "bench_evaluator.json").read_text())["rows"]
    assert set(rows) == {"resnet20", "digits"}
    assert all(row["seconds"] > 0 for subjects in rows.values() for row in subjects.values())
    assert rows["digits"]["bare eager float forward"]["ratio"] == 1.0
    assert "float backend, one allocation" in capsys.readouterr().out


def test_regret_falls_along_a_search_and_never_below_zero(tmp_path, capsys):
    arguments = ["--agents=[random]", "--tasks=[digits_table]", "--budgets=[0.45]", "--seeds=2", "--workers=1"]
    assert regret_curves.main([*arguments, "--checkpoints=[2,40]", f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "regret_curves.json").read_text())
    assert len(content["curves"]) == 2
    for curve in content["curves"]:
        early, late = curve["regret"]
        assert early >= late >= 0
        assert 0 < curve["standard_error"] < 2.5
    assert "| digits_table | 0.45 | random |" in capsys.readouterr().out
