"""The benchmarks run, and what they write is what they print. Their figures are not tested."""

import json

from experiments.studies import bench_correction, bench_tasks
from quantenv.tasks import get_task
from tests.digits import few_digits_of_any_scheme


def test_bench_correction_has_a_row_for_every_scheme_and_leaves_out_tasks_without_data(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QUANTENV_DATA", raising=False)
    few = few_digits_of_any_scheme()
    monkeypatch.setattr(bench_tasks, "get_task", lambda name: few if name == "digits" else get_task(name))
    schemes = ["linear", "linear+bias"]
    assert bench_correction.main(["--images=30", f"--schemes=[{','.join(schemes)}]", f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "bench_correction.json").read_text())
    assert list(content["cases"]) == [f"digits, {scheme}" for scheme in schemes]
    rows = [row for case in content["cases"].values() for row in case["rows"]]
    assert [row["scheme"] for row in rows] == [scheme for scheme in schemes for _ in range(4)]
    assert {row["samples"] for row in rows} == {30}
    table = (tmp_path / "bench_correction.md").read_text()
    assert capsys.readouterr().out == table
    assert all(f"| {scheme} |" in table for scheme in schemes)
    schemes = bench_correction.every_scheme()
    assert len(set(schemes)) == len(schemes)
    assert {"linear", "linear+bias+batch-norm", "k-means"} < set(schemes)
    assert "resnet20 was left out" in table
