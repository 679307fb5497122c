import json
from contextlib import nullcontext

import pytest

from experiments.studies import bench_qat
from quantenv.core.errors import QuantenvError
from tests.digits import few_digits


def test_it_times_the_steps_in_turn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_qat, "compiler_obstacle", lambda: None)  # which compiles the kernels, too
    monkeypatch.setattr("torch._inductor.utils.fresh_cache", nullcontext)  # what other tests have compiled will do
    monkeypatch.setattr(bench_qat, "random_resnet20", lambda _images: few_digits())  # of which all is prepared
    options = ["--rounds=1", "--batch=4", "--threads=1", "--compiled=[quantizers]"]  # a network takes a minute
    assert bench_qat.main([*options, f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "bench_qat.json").read_text())
    assert list(content["rows"]) == [
        "float, eager",
        "LSQ, eager",
        "LSQ, quantizers compiled",
        "LSQ, quantizers compiled, live norms",
    ]
    assert content["rows"]["float, eager"]["over_float"]["median"] == 1.0
    table = (tmp_path / "bench_qat.md").read_text()
    assert capsys.readouterr().out == table
    assert "| LSQ, quantizers compiled |" in table


def test_bad_options_are_refused():
    for options in ({"rounds": 0}, {"batch": 0}, {"bits": 1}, {"threads": 0}, {"compiled": ["net"]}):
        with pytest.raises(QuantenvError):
            bench_qat.BenchOptions(**options)
