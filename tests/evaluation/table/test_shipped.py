import importlib.resources

import pytest

from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.evaluation.table.shipped import (
    TABLES,
    ShippedTable,
    get_table,
    network_task,
    resolve_task,
    table_descriptions,
    table_names,
)
from quantenv.tasks import task_names
from tests.synthetic_table import synthetic_table


@pytest.fixture
def file(tmp_path):
    synthetic_table().save(tmp_path / "mine.npz")
    return str(tmp_path / "mine.npz")


@pytest.mark.parametrize("name", TABLES)
def test_shipped_tables_are_what_they_say(name):
    table = get_table(name)
    assert table is get_table(name)
    assert (table.name, table.task) == (name, TABLES[name].task)
    assert table.rows == 65_536
    assert table.bits == (2, 4, 6, 8)
    assert set(table.reference) == {"search", "test"}
    assert table.provenance
    eight = make_evaluator("ptq", table).evaluate([table.allocation(table.rows - 1)], "test")[0]
    assert abs(eight.accuracy - table.reference["test"].accuracy) < 0.02


def test_shipped_tables_take_a_few_megabytes_together():
    folder = importlib.resources.files("quantenv.evaluation.table.data")
    assert sum(len((folder / table.file).read_bytes()) for table in TABLES.values()) < 4_000_000


def test_names_of_tables_and_tasks_differ():
    assert table_names() == tuple(table_descriptions()) == tuple(TABLES)
    assert not set(table_names()) & set(task_names())
    assert not [name for name in task_names() if name.endswith(".npz")]


def test_a_table_file_is_a_task_by_its_path(file):
    assert resolve_task(file).name == "synthetic_table"
    assert network_task(file) == "synthetic"
    assert network_task("digits") == "digits"
    assert isinstance(make_evaluator("ptq", resolve_task(file)), TableEvaluator)


def test_a_table_answers_only_for_the_evaluator_that_filled_it(file):
    with pytest.raises(QuantenvError, match="holds evaluations by 'ptq', not by 'finetune'"):
        make_evaluator("finetune", resolve_task(file))


def test_a_missing_table_says_how_to_make_it(monkeypatch):
    monkeypatch.setitem(TABLES, "absent_table", ShippedTable("absent.npz", "digits", "not there"))
    with pytest.raises(QuantenvError, match=r"quantenv enumerate --task digits --output .*absent.npz"):
        get_table("absent_table")


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match="Did you mean 'digits_table'"):
        get_table("digit_table")
    with pytest.raises(QuantenvError, match=r"Unknown task 'digits_tabel'. Did you mean 'digits_table'"):
        resolve_task("digits_tabel")
    with pytest.raises(QuantenvError, match=r"Cannot read the evaluation table .*: No such file"):
        resolve_task(str(tmp_path / "missing.npz"))
