"""`make test-fast` leaves out what is slow and nothing else; `make test` and continuous integration, nothing."""

import ast
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest, selection
from tests.clients.installed import NEEDS
from tests.test_packaging import ROOT, make


def functions() -> dict[str, set[str]]:
    """Every file of tests, and the test functions at its top."""
    return {
        str(path.relative_to(ROOT)): {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def test_every_slow_test_that_is_listed_exists():
    found = functions()
    for name in selection.listed():
        file, _, function = name.partition("::")
        assert function in found.get(file, ()), f"{name} is gone: take it out, or `make test ARGS=--record-slow`"


def test_most_tests_of_every_area_are_fast():
    left, total = defaultdict(int), defaultdict(int)
    for file, names in functions().items():
        area = Path(file).parts[1] if len(Path(file).parts) > 2 else "top"
        total[area] += len(names)
        left[area] += len(
            names - {name.partition("::")[2] for name in selection.listed() if name.startswith(f"{file}:")}
        )
    assert len(total) >= 10
    assert all(left[area] > total[area] / 4 for area in total), left
    assert sum(left.values()) > sum(total.values()) / 2


def item(node):
    return SimpleNamespace(nodeid=node)


@pytest.mark.parametrize("fast", [True, False])
def test_the_listed_functions_are_left_out_when_asked_for(monkeypatch, fast):
    nodes = ["tests/test_a.py::test_one[x[1]]", "tests/test_a.py::test_one_more", "tests/test_b.py::test_one[2]"]
    monkeypatch.setattr(selection, "listed", lambda: {"tests/test_a.py::test_one"})
    items, gone = [item(node) for node in nodes], []
    hook = SimpleNamespace(pytest_deselected=lambda items: gone.extend(items))
    conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: fast, hook=hook), items)
    assert [each.nodeid for each in items] == (nodes[1:] if fast else nodes)
    assert [each.nodeid for each in gone] == (nodes[:1] if fast else [])


def test_seconds_are_summed_over_cases_and_shared_fixtures_over_functions():
    seconds = selection.Seconds()
    for case in range(4):
        seconds.add(f"tests/test_a.py::test_cases[{case}]", selection.SLOW / 4, 0.0)
    seconds.add("tests/test_a.py::test_quick", 0.01, 0.0)
    seconds.add("tests/test_b.py::test_first", 0.0, 1.5 * selection.SLOW)
    seconds.add("tests/test_b.py::test_second", 0.6 * selection.SLOW, 0.0)
    assert seconds.slow() == ["tests/test_a.py::test_cases", "tests/test_b.py::test_second"]


def test_what_child_processes_took_counts():
    before = selection.clock()
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"], check=True)
    assert selection.clock() > before


def test_a_recorded_list_is_read_back(monkeypatch, tmp_path):
    monkeypatch.setattr(selection, "LIST", tmp_path / "slow.txt")
    selection.write(["tests/test_a.py::test_cases", "tests/test_b.py::test_second"])
    assert selection.listed() == {"tests/test_a.py::test_cases", "tests/test_b.py::test_second"}


def arguments(target: str) -> list[str]:
    return shlex.split(make("--dry-run", target).splitlines()[-1])[3:]


def test_only_test_fast_leaves_anything_out():
    assert arguments("test-fast") == [*arguments("test"), "--fast"]
    assert not {"--fast", "-k", "-m", "--deselect", "--ignore", "--lf"} & set(arguments("test"))
    commands = make("--dry-run", "check").splitlines()
    assert shlex.split(commands[-1])[3:] == arguments("test")
    assert "fast" not in (ROOT / ".ci" / "run").read_text()
    # What is not collected without --fast either are tests of clients that are not installed: the run says so.
    ignored = [path for path in (ROOT / "tests").rglob("conftest.py") if "collect_ignore" in path.read_text()]
    assert {path.parent.name for path in ignored} == {"clients"}
    assert set(NEEDS) == {path.name for path in (ROOT / "tests" / "clients").glob("test_*.py")}


def test_help_says_what_it_leaves_out():
    (line,) = [line for line in make().splitlines() if "make test-fast" in line]
    assert "tests/slow.txt" in line
