"""`quantenv enumerate`, killed and given again."""

import multiprocessing
import os
import signal
import sys

import pytest

from experiments.cli.main import main
from quantenv.evaluation.table import enumeration
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.row_blocks import RowBlocks
from tests.experiments import tied_digits

ARGUMENTS = ("enumerate", f"--task={tied_digits.TASK}", "--bits=4,8", "--workers=1")


def ended(owner, name, number, arguments):
    """Runs the command in a process that ends itself while it keeps the third block of rows; returns its exit code."""
    ours, kept = getattr(owner, name), []

    def ending(*given):
        kept.append(given)
        if len(kept) == 3:
            os.kill(os.getpid(), number)
        return ours(*given)

    def run():
        setattr(owner, name, ending)
        sys.exit(main(arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of an enumeration that nothing ended."""
    path = tmp_path_factory.mktemp("whole") / "table.npz"
    assert main([*ARGUMENTS, f"--output={path}"]) == 0
    return EvaluationTable.load(path)


@pytest.mark.parametrize(
    ("owner", "name", "number", "code"),
    [
        (os, "replace", signal.SIGKILL, -signal.SIGKILL),
        (RowBlocks, "keep", signal.SIGINT, 130),
    ],
)
def test_it_goes_on_where_it_was_ended(owner, name, number, code, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(enumeration, "BLOCK", 2)
    arguments = [*ARGUMENTS, f"--output={tmp_path / 'table.npz'}"]
    assert ended(owner, name, number, arguments) == code
    assert not (tmp_path / "table.npz").exists()
    assert len(list((tmp_path / "table.npz.rows").glob("rows-*"))) == 2
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "4 of 16 rows are kept from before" in captured.err
    assert "16 allocations of 4 groups on 2 splits, 12 evaluated" in " ".join(captured.out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["table.npz"]
    table = EvaluationTable.load(tmp_path / "table.npz")
    assert table.name == f"{tied_digits.TASK}_table"
    for split in ("search", "test"):
        assert (whole.correct[split] == table.correct[split]).all()
        assert (whole.loss[split] == table.loss[split]).all()


def test_a_finished_enumeration_keeps_nothing_for_the_next(tmp_path, capsys):
    arguments = [*ARGUMENTS[:2], "--bits=8", "--workers=1", f"--output={tmp_path / 'table.npz'}"]
    for _ in range(2):
        assert main(arguments) == 0
        captured = capsys.readouterr()
        assert "kept from before" not in captured.err
        assert "1 allocations of 4 groups on 2 splits, 1 evaluated" in " ".join(captured.out.split())


def test_what_else_lies_in_the_folder_of_rows_is_left(tmp_path, monkeypatch):
    (tmp_path / "table.npz.rows").mkdir()
    (tmp_path / "table.npz.rows" / "notes.txt").write_text("mine")
    assert main([*ARGUMENTS[:2], "--bits=8", "--workers=1", f"--output={tmp_path / 'table.npz'}"]) == 0
    assert [path.name for path in (tmp_path / "table.npz.rows").iterdir()] == ["notes.txt"]
