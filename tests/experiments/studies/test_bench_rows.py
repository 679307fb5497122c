"""Rows of tables are evaluated again in processes of their own, and one that differs is seen."""

import pytest

from experiments.studies import bench_rows
from experiments.studies.bench_options import BenchOptions
from experiments.studies.bench_rows import AVX2, OWN, Setting, claims, measure, to_markdown
from quantenv.tasks.resnet20 import DATA_VARIABLE


@pytest.fixture(autouse=True)
def no_images(monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def test_rows_are_evaluated_again(monkeypatch):
    settings = (Setting("AVX2", AVX2, 1, 1, "float32", store=True), Setting("this CPU", OWN, 1, 500))
    monkeypatch.setattr(bench_rows, "SETTINGS", settings)
    measured = measure(BenchOptions(live_rows=22))
    assert [(each["equal"], each["rows"]) for each in measured["digits_table"]["settings"]] == [(1, 1), (22, 22)]
    assert measured["resnet20_table"] is None
    digits, resnet20 = claims(measured)
    assert (digits.met, digits.measured) == (True, "23 of 23 in 2 settings")
    assert (resnet20.met, resnet20.measured) == (None, "not measured: its images are not at hand")
    assert "| digits_table | AVX2 | 1 | 1 | float32 | read back | 1 of 1 |" in to_markdown(measured)


@pytest.mark.parametrize("moved", [(1, 0.0), (0, 1e-6)])
def test_a_row_that_differs_on_one_split_is_seen(moved, monkeypatch):
    def live(name, rows, setting):
        found = bench_rows.live_rows(name, rows, 1, 500, "auto", False)
        if setting.threads == 2:
            found["test"][-1] = [value + more for value, more in zip(found["test"][-1], moved, strict=True)]
        return found

    monkeypatch.setattr(bench_rows, "_in_a_process", live)
    monkeypatch.setattr(bench_rows, "SETTINGS", [Setting("this CPU", OWN, threads, 500) for threads in (1, 2)])
    digits, _ = claims(measure(BenchOptions(live_rows=3)))
    assert (digits.met, digits.measured) == (False, "5 of 6 in 2 settings")
