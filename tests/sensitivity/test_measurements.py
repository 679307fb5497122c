import subprocess
import sys

from quantenv.sensitivity.measurements import Measurements, measurement_path

WAIT = """
import sys, time
from pathlib import Path
from quantenv.sensitivity.measurements import Measurements
kept = Measurements(Path(sys.argv[1]), "0")
with kept.alone():
    print("holds it", flush=True)
    time.sleep(0.5)
    kept.keep(["a"], [1])
"""


def test_names_of_tasks_make_names_of_files(cache):
    path = measurement_path("my task/3", "linear", "search", "0123")
    assert path == cache / "sensitivity" / "my_task_3-linear-search-0123.json"


def test_results_are_kept_at_once(tmp_path):
    path = tmp_path / "a.json"
    kept = Measurements(path, "0")
    kept.keep(["a", "b"], [[0.1, 1e-17], 2])
    kept.keep(["c"], [3])
    again = Measurements(path, "0")
    assert [again[name] for name in "abc"] == [[0.1, 1e-17], 2, 3]
    assert "d" not in again


def test_a_file_of_another_identity_is_not_believed(tmp_path, caplog):
    path = tmp_path / "a.json"
    Measurements(path, "0").keep(["a"], [1])
    assert "a" not in Measurements(path, "1")
    assert "damaged" in caplog.text


def test_a_second_process_waits_and_reads(tmp_path, caplog):
    path = tmp_path / "a.json"
    first = subprocess.Popen([sys.executable, "-c", WAIT, str(path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "holds it\n"
    kept = Measurements(path, "0")
    with kept.alone():
        assert kept["a"] == 1
    assert first.wait() == 0
    assert "waiting for it" in caplog.text
