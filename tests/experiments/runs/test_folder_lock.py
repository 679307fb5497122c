import json
import multiprocessing
import os
import signal
import socket
import threading

import filelock
import pytest

from experiments.cli.main import main
from experiments.runs.folder_lock import LOCK, NOTE, FolderInUseError, kept_folder, sole_writer


def hold(folder, ready):
    with sole_writer(folder, "quantenv train"):
        ready.set()
        signal.pause()


def refusal(folder):
    """Tries to write a folder and returns why it must not."""
    with pytest.raises(FolderInUseError) as refused, sole_writer(folder, "quantenv train --resume"):
        pass
    return str(refused.value)


@pytest.fixture
def holder(tmp_path):
    """A process that writes the folder."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_writer_is_told_who_the_first_one_is(holder, tmp_path):
    for _ in range(2):
        assert f"`quantenv train`, process {holder.pid} on {socket.gethostname()}, since 20" in refusal(tmp_path)
    holder.kill()
    holder.join()
    assert (tmp_path / NOTE).exists()  # stale, and in nobody's way
    with sole_writer(tmp_path, "quantenv train --resume"):
        assert json.loads((tmp_path / NOTE).read_text())["process"] == os.getpid()
    assert not (tmp_path / NOTE).exists()


def test_what_a_killed_or_foreign_process_left_means_nothing(tmp_path):
    (tmp_path / LOCK).write_text("4711")
    (tmp_path / NOTE).write_text(
        json.dumps({"command": "x", "process": os.getpid(), "host": "elsewhere", "since": "?"})
    )
    with sole_writer(tmp_path, "quantenv train"):
        pass


@pytest.mark.parametrize("note", ["", "[" * 10_000, "[1]", '{"process": 1}', "\0"])
def test_an_unreadable_note_still_refuses(note, tmp_path):
    with sole_writer(tmp_path, "quantenv train"):
        (tmp_path / NOTE).write_text(note)
        assert "by another process: wait" in refusal(tmp_path)


def test_threads_exclude_each_other(tmp_path):
    refusals = []
    with sole_writer(tmp_path, "quantenv train"):
        thread = threading.Thread(target=lambda: refusals.append(refusal(tmp_path)))
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in refusals[0]


def test_file_systems_without_locks_are_named(tmp_path, monkeypatch, capsys):
    def acquire(self):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with kept_folder(tmp_path / "new", "quantenv train", "the same command"):
        pass
    assert "file system without locks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume"],
        ["benchmark", "--quick", "--output"],
        ["tune", "--output"],
        ["pretrain", "--resume"],
        ["finetune", "--allocation=best.json", "--output"],
    ],
)
def test_every_command_that_keeps_writing_a_folder_is_alone(command, run_copy, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(run_copy)
    if command[0] == "pretrain":
        monkeypatch.setattr("experiments.cli.pretrain._resumed", lambda given, folder, arguments: given)
        monkeypatch.setattr("experiments.cli.pretrain._task", lambda options, model: _Nothing())
        monkeypatch.setattr("experiments.cli.pretrain.Pretraining", lambda *arguments: None)
        monkeypatch.setattr("experiments.cli.pretrain.check_source", lambda *arguments: None)
    (run_copy / "report.json").unlink()
    with sole_writer(run_copy, "quantenv other"):
        assert "is being written by `quantenv other`, process" in refused(*command, str(run_copy))
        assert main(["validate", str(run_copy), "--sample=1"]) == 0  # readers take no lock


class _Nothing:
    network = None
    splits = {"train": None}  # noqa: RUF012
