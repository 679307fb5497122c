import json

import pytest

from experiments import bench_workers
from quantenv.errors import QuantenvError


def test_it_times_every_way_and_all_agree(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_workers, "REST", 0)
    arguments = ["--tasks=[digits]", "--workers=2", "--pools=[processes]", "--batch=6", "--repeats=1"]
    assert bench_workers.main([*arguments, f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "bench_workers.json").read_text())
    rows = content["tasks"]["digits"]["rows"]
    assert list(rows) == ["one process, one thread", "one process, all cores", "2 processes, one thread each"]
    assert rows["one process, one thread"]["over_one_thread"] == 1.0
    assert rows["one process, all cores"]["over_all_cores"] == 1.0
    assert all(0 < row["least"] <= row["seconds"] <= row["greatest"] for row in rows.values())
    assert "| digits, 6 allocations," in capsys.readouterr().out


def test_bad_options_are_refused():
    for options in ({"workers": 0}, {"repeats": 0}, {"pools": ["rey"]}):
        with pytest.raises(QuantenvError):
            bench_workers.BenchOptions(**options)
