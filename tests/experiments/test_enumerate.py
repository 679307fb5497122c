"""`quantenv enumerate`, killed and given again."""

import signal
import subprocess
import sys

import pytest

from experiments.cli import main
from quantenv.evaluate import enumeration
from quantenv.evaluate.table import EvaluationTable

ARGUMENTS = ("enumerate", "--task=digits", "--bits=4,8", "--workers=1")
#: Ends itself while it keeps the third block of rows.
KILLED = """
import os, signal, sys
from experiments.cli import main
from quantenv.evaluate import enumeration, row_blocks
enumeration.BLOCK = 32
ours, kept = {function}, []
def killing(*arguments):
    kept.append(arguments)
    if len(kept) == {calls}:
        os.kill(os.getpid(), signal.{signal})
    return ours(*arguments)
{function} = killing
sys.exit(main(sys.argv[1:]))
"""


def ended(function, calls, number, arguments):
    program = KILLED.format(function=function, calls=calls, signal=number.name)
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("function", "number", "code"),
    [
        ("os.replace", signal.SIGKILL, -signal.SIGKILL),
        ("row_blocks.RowBlocks.keep", signal.SIGINT, 130),
    ],
)
def test_it_goes_on_where_it_was_ended(function, number, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(enumeration, "BLOCK", 32)
    arguments = [*ARGUMENTS, f"--output={tmp_path / 'table.npz'}"]
    run = ended(function, 3, number, arguments)
    assert run.returncode == code, run.stderr
    assert not (tmp_path / "table.npz").exists()
    assert len(list((tmp_path / "table.npz.rows").glob("rows-*"))) == 2
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "64 of 256 rows are kept from before" in captured.err
    assert "256 allocations of 8 groups on 2 splits, 192 evaluated" in " ".join(captured.out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["table.npz"]
    table = EvaluationTable.load(tmp_path / "table.npz")
    assert table.name == "digits_table"
    assert main(arguments) == 0
    assert "kept from before" not in capsys.readouterr().err
    again = EvaluationTable.load(tmp_path / "table.npz")
    for split in ("search", "test"):
        assert (again.correct[split] == table.correct[split]).all()
        assert (again.loss[split] == table.loss[split]).all()


def test_what_else_lies_in_the_folder_of_rows_is_left(tmp_path, monkeypatch):
    (tmp_path / "table.npz.rows").mkdir()
    (tmp_path / "table.npz.rows" / "notes.txt").write_text("mine")
    assert main([*ARGUMENTS[:2], "--bits=8", "--workers=1", f"--output={tmp_path / 'table.npz'}"]) == 0
    assert [path.name for path in (tmp_path / "table.npz.rows").iterdir()] == ["notes.txt"]
