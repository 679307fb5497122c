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
    kept.get("a", lambda: 1)
"""


def never():
    raise AssertionError("measured twice")


def test_names_of_tasks_make_names_of_files(cache):
    path = measurement_path("my task/3", "linear", "search", "0123")
    assert path == cache / "sensitivity" / "my_task_3-linear-search-0123.json"


def test_results_are_kept_at_once(tmp_path):
    path = tmp_path / "a.json"
    kept = Measurements(path, "0")
    assert kept.get("a", lambda: [0.1, 1e-17]) == [0.1, 1e-17]
    assert Measurements(path, "0").get("a", never) == [0.1, 1e-17]
    assert "b" not in kept


def test_a_file_of_another_identity_is_not_believed(tmp_path, caplog):
    path = tmp_path / "a.json"
    Measurements(path, "0").get("a", lambda: 1)
    assert Measurements(path, "1").get("a", lambda: 2) == 2
    assert "damaged" in caplog.text


def test_a_second_process_waits_and_reads(tmp_path, caplog):
    path = tmp_path / "a.json"
    first = subprocess.Popen([sys.executable, "-c", WAIT, str(path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "holds it\n"
    kept = Measurements(path, "0")
    with kept.alone():
        assert kept.get("a", never) == 1
    assert first.wait() == 0
    assert "waiting for it" in caplog.text
