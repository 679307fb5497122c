import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.cli.main import main
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.episodes import read_episodes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_effect_at_the_next_check(number, code):
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        stop.check("any", "arguments")
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as interruption:
            stop.check()
    assert interruption.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_acts_at_once():
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as interruption:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(interruption.value, Interrupted)
        with pytest.raises(Interrupted):
            stop.check()


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), GracefulStop():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_get_no_signals_and_no_error():
    checked = []

    def check():
        with GracefulStop() as stop:
            stop.check()
            checked.append(True)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert checked


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.main", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QUANTENV_STORE": "off", "OMP_NUM_THREADS": "1"},
        preexec_fn=heed,
    )


def heed():
    """Has signals end the process, whatever ignores them here: tests may run under nohup."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def catches(process, number):
    """Whether a process has a handler for a signal; where the system does not tell, waits a little and hopes."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.3)
        return True
    mask = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_libraries_are_imported_is_one_sentence(number, code, tmp_path):
    process = start("train", f"--runs={tmp_path}")
    while not catches(process, signal.SIGTERM):
        time.sleep(0.002)
    process.send_signal(number)
    _, error = process.communicate()
    assert (process.returncode, error) == (code, "quantenv: interrupted.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("numbers", "code"), [([signal.SIGINT] * 5, 130), ([signal.SIGHUP], 129)])
def test_signals_in_a_search_leave_a_sound_folder(numbers, code, tmp_path):
    process = start("train", "--task=digits_table", "--agent=random", "--evaluations=5000", f"--runs={tmp_path}")
    while not [path for path in tmp_path.glob("*/*/*/episodes.jsonl") if path.stat().st_size]:
        assert process.poll() is None
        time.sleep(0.005)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.005)
    _, error = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in error
    assert "ignored" not in error
    (folder,) = tmp_path.glob("*/*/*")
    episodes, _ = read_episodes(folder / "episodes.jsonl")
    assert 0 < len(episodes) < 5000
    assert main(["validate", str(folder), "--sample=2"]) == 0
