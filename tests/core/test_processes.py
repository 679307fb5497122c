import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from quantenv.core import processes
from quantenv.core.processes import end_with_parent, handed_on, pin_threads, process_context, take
from quantenv.core.signals import ENDING

linux = sys.platform == "linux"


def report(connection, variables, received=()):
    """Says how a process finds itself, in the process."""
    threads = len(os.listdir("/proc/self/task")) if linux else 1
    had = dict(os.environ)
    take(variables, *received)
    blocked = {number for number in ENDING if number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}
    pin_threads(3)
    import torch

    found = {"parent": os.getppid(), "threads": threads, "had": had, "variables": dict(os.environ)}
    connection.send(found | {"blocked": blocked, "path": sys.path, "torch": torch.get_num_threads()})


def started(context, *arguments):
    ours, theirs = context.Pipe()
    process = context.Process(target=report, args=(theirs, handed_on(), *arguments))
    process.start()
    found = ours.recv()
    process.join()
    assert process.exitcode == 0
    return found


def test_processes_come_from_one_server_with_one_thread():
    first, second = started(process_context()), started(process_context())
    if linux:
        assert first["parent"] == second["parent"] != os.getpid()
        assert first["threads"] == 1
        assert "hugetlb=1" in first["had"]["GLIBC_TUNABLES"]
    assert first["torch"] == 3
    assert first["path"] == sys.path


def test_elsewhere_they_are_spawned(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert process_context().get_start_method() == "spawn"


def test_variables_are_those_of_now_and_not_of_when_the_server_started(monkeypatch):
    process_context()
    before = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    monkeypatch.setenv("QUANTENV_CACHE", "/elsewhere")
    monkeypatch.delenv("PATH")
    found = started(process_context())["variables"]
    expected = before | {"QUANTENV_CACHE": "/elsewhere"} | dict.fromkeys(processes.THREAD_VARIABLES, "3")
    del expected["PATH"]
    assert {name: value for name, value in found.items() if name != "PYTEST_CURRENT_TEST"} == expected


def test_starting_changes_no_variable_and_no_signal_here():
    before, mask = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process_context()
    assert os.environ == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


@pytest.mark.skipif(not linux, reason="elsewhere who starts processes blocks signals")
def test_signals_that_end_programs_do_not_reach_them_but_those_asked_for():
    context = process_context()
    assert started(context)["blocked"] == set(ENDING)
    assert started(context, (signal.SIGTERM,))["blocked"] == {signal.SIGINT, signal.SIGHUP}


def ask_again(connection):
    connection.send(process_context().get_start_method())


def test_a_fork_of_a_process_with_a_server_spawns():
    process_context()
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=ask_again, args=(theirs,))
    process.start()
    assert ours.recv() == "spawn"
    process.join()


def report_and_wait(connection):
    end_with_parent()
    connection.send(os.getpid())
    time.sleep(600)


def start_and_die(connection):
    process = get_context("spawn").Process(target=report_and_wait, args=(connection,), daemon=False)
    process.start()
    time.sleep(600)


def test_a_process_ends_when_the_one_that_started_it_is_killed():
    context = process_context()
    ours, theirs = context.Pipe()
    parent = context.Process(target=start_and_die, args=(theirs,))
    parent.start()
    child = ours.recv()
    parent.kill()
    parent.join()
    for _ in range(500):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError("it lives on")


def test_a_long_temporary_directory_spawns(tmp_path):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    program = "from quantenv.core.processes import process_context; print(process_context().get_start_method())"
    variables = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(Path(processes.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "spawn\n"


def test_a_python_whose_server_anybody_may_talk_to_spawns(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    assert process_context().get_start_method() == "spawn"


PROGRAM = """
import sys
from concurrent.futures import ProcessPoolExecutor
from quantenv.core.processes import process_context

if __name__ == "__main__":
    with ProcessPoolExecutor(1, process_context()) as pool:
        pool.submit(print, "worked", flush=True).result()
"""


def test_the_working_directory_is_not_searched_for_modules(tmp_path):
    (tmp_path / "code").mkdir()
    program = tmp_path / "code" / "program.py"
    program.write_text(PROGRAM)
    there = tmp_path / "there"
    there.mkdir()
    for name in ("torch", "numpy", "random", "quantenv"):
        (there / f"{name}.py").write_text("open('taken', 'w')\n")
    variables = os.environ | {"PYTHONPATH": str(Path(processes.__file__).parents[2])}
    done = subprocess.run([sys.executable, str(program)], cwd=there, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr
    assert not (there / "taken").exists()
