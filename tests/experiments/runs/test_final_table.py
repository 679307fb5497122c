import io
import json

import pytest
from rich.console import Console

from experiments.runs.final_table import Report, Row, print_report, to_markdown
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import fit
from quantenv.hardware import format_quantity
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(3)


def make_report():
    mixed = Allocation.make(LAYERS, [2, 3, 4]).to_dict()
    uniform = Allocation.make(LAYERS, 3).to_dict()
    rows = (
        Row("float", "", 99, 100, 0.1, {"size": 4000.0}, False, None),
        Row("best uniform", "post-training", 80, 100, 0.9, {"size": 400.0, "bops": 1e6}, True, uniform),
        Row("found", "post-training", 95, 100, 0.2, {"size": 500.0, "bops": 1e6}, True, mixed),
    )
    return Report(True, 40, {"size": 512.0}, rows, ("Mixed precision won.",), ("A note.",))


def test_json_reads_back_the_same():
    report = make_report()
    assert fit(json.loads(json.dumps(report.to_dict())), Report, "x").check() == report


@pytest.mark.parametrize("damage", [{"format": "other"}, {"rows": [{}]}, {"surplus": 1}])
def test_unsound_content_is_refused(damage):
    with pytest.raises(QuantenvError, match=r"^The file x "):
        fit(make_report().to_dict() | damage, Report, "The file x")


def test_markdown_is_a_table_with_every_row():
    lines = [line for line in to_markdown(make_report()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1
    assert "| best uniform 3/8 | post-training | 80.00% | 0.9000 |" in lines[3]
    assert format_quantity("size", 500.0) in lines[4]
    assert lines[2].split("|")[6].strip() == "-"  # the float network's BOPs were not given


def test_terminal_shows_table_notes_and_verdicts():
    stream = io.StringIO()
    print_report(make_report(), Console(file=stream, width=130))
    text = stream.getvalue()
    for part in ("best uniform 3/8", "95.00%", "A note.", "Mixed precision won.", format_quantity("size", 512.0)):
        assert part in text


def test_rows_are_found_by_name_and_stage():
    report = make_report()
    assert report.row("found", "post-training") is report.rows[2]
    assert report.row("found", "QAT") is None
