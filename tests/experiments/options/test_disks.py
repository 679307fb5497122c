import builtins
import errno
import io
import os
import sqlite3
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
import torch

from experiments.cli.main import main
from experiments.options.disks import DiskError, continued_by, disk_failure, quiet_threads
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_atomically
from tests.digits import FEW_DIGITS
from tests.experiments.cli.test_train import results
from tests.experiments.conftest import run_train

QUICK = (f"--task={FEW_DIGITS}", "--agent=random", "--evaluations=8", "--qat.epochs=1", "--top_k=3")
FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """Lets the n-th write to a folder, and all after it, fail: Python's own files, and the system's calls."""

    def __init__(self, folder, monkeypatch, number=errno.ENOSPC):
        self.folder, self.number = str(folder), number
        self.left = 10**9
        self.writes = 0
        opened, fdopen, replace = builtins.open, os.fdopen, os.replace

        def open_counted(file, mode="r", *arguments, **options):
            stream = opened(file, mode, *arguments, **options)
            if set(mode) & set("wax+") and str(file).startswith(self.folder):
                self.count()
                return Counted(stream, self)
            return stream

        def fdopen_counted(handle, mode="r", *arguments, **options):
            stream = fdopen(handle, mode, *arguments, **options)
            here = os.readlink(f"/proc/self/fd/{handle}").startswith(self.folder)
            return Counted(stream, self) if "w" in mode and here else stream

        def replace_counted(source, target):
            if str(target).startswith(self.folder):
                self.count()
            replace(source, target)

        monkeypatch.setattr(builtins, "open", open_counted)
        monkeypatch.setattr(io, "open", open_counted)
        monkeypatch.setattr(os, "fdopen", fdopen_counted)
        monkeypatch.setattr(os, "replace", replace_counted)

    def count(self):
        self.writes += 1
        if self.writes > self.left:
            raise OSError(self.number, os.strerror(self.number))


class Counted:
    """A file whose writes are counted."""

    def __init__(self, stream, disk):
        self._stream, self._disk = stream, disk

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stream.close()

    def write(self, content):
        self._disk.count()
        return self._stream.write(content)


def test_a_disk_that_fails_at_any_write_gives_one_sentence_and_an_exact_resume(tmp_path, monkeypatch, capfd):
    disk = Disk(tmp_path, monkeypatch)
    whole = run_train(tmp_path / "whole", *QUICK)
    total = disk.writes
    assert total - 12 > 16 + 3  # each case in another part of the run
    for number, left in enumerate([0, 3, 8, 16, total - 12, total - 3, total - 1]):
        capfd.readouterr()
        disk.writes, disk.left = 0, left
        runs = tmp_path / str(number)
        assert main(["train", f"--runs={runs}", *QUICK]) == 1
        error = capfd.readouterr().err
        *_, sentence = error.splitlines()
        assert "Traceback" not in error
        assert sentence.startswith("quantenv: ")
        assert sum(line.startswith("quantenv: ") for line in error.splitlines()) == 1
        disk.left = 10**9
        folders = list(runs.glob("*/*/*"))
        if not folders:
            assert "No space left on device" in sentence
            continue
        (folder,) = folders
        assert sentence == (
            f"quantenv: The disk that holds {folder} is full. Free space, and continue with `quantenv train --resume "
            f"{folder}`."
        )
        assert main(["train", "--resume", str(folder)]) == 0
        assert results(folder) == results(whole)


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


class FullFile(io.RawIOBase):
    def writable(self):
        return True

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_database():
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    connection.execute("CREATE TABLE t (x)")


def full_engine():
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.exec_driver_sql("CREATE TABLE t (x)")


def test_what_libraries_raise_is_recognised(tmp_path):
    for error in (
        FULL,
        raised(lambda: torch.save({"weight": torch.zeros(100_000)}, FullFile())),
        raised(full_database),
        raised(full_engine),
    ):
        assert disk_failure(error) == "A disk is full. Free space"
        assert disk_failure(error, tmp_path) == f"The disk that holds {tmp_path} is full. Free space"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "quota"),
        (errno.EIO, "fails. Check it"),
        (errno.EROFS, "can only be read"),
        (errno.EFBIG, "takes no larger file"),
        (errno.EACCES, "does not let you in"),
    ],
)
def test_each_failure_has_its_words(number, words, tmp_path):
    with pytest.raises(DiskError, match=words) as caught, continued_by("`quantenv x`", tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert str(tmp_path / "file") not in str(caught.value)  # one that is replaced by what is aside
    assert str(caught.value).endswith("continue with `quantenv x`.")


def test_other_errors_are_not_the_disk_s(tmp_path):
    for error in (ValueError(), FileNotFoundError(errno.ENOENT, "x", "y"), PermissionError(errno.EPERM, "kill")):
        assert disk_failure(error) is None
        with pytest.raises(type(error)), continued_by("x", tmp_path):
            raise error
    mistake = QuantenvError("Cannot read x: Permission denied.")
    mistake.__cause__ = PermissionError(errno.EACCES, "x", "y")
    assert disk_failure(mistake) is None


def test_the_error_names_the_file(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, "x")

    with pytest.raises(OSError) as caught:  # noqa: PT011
        write_atomically(tmp_path / "file", write)
    assert caught.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_thread_s_failure_is_said_by_the_one_that_waits_for_it(capsys):
    def fail(error):
        def target():
            raise error

        with quiet_threads():
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return capsys.readouterr().err

    assert fail(OSError(errno.ENOSPC, "x")) == ""


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli.main", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        **options,
    )


def test_an_output_that_nobody_reads_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["tasks"], ["--help"], ["train", "--help"]):
        ended = run(*arguments, stdout=writer)
        assert ended.stderr == ""
    os.close(writer)
