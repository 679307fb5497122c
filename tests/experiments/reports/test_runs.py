"""Each run by itself: what its own files hold is on the page."""

import json
from urllib.parse import unquote

import pytest

from experiments.runs.provenance import PACKAGES
from tests.experiments.reports.conftest import make_report


@pytest.fixture(scope="module")
def content(finished):
    return json.loads((finished / "report.json").read_text())


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("page") / "r.html", str(finished), "--measure=false")


def test_the_final_table_has_accuracies_and_costs(page, content):
    for row in content["rows"]:
        assert f"{row['correct'] / row['samples']:.2%} {row['loss']:.4f}" in page.text
    for heading in ("size", "BOPs", "latency", "energy", "in budget"):
        assert heading in page.text
    for sentence in (*content["verdicts"], *content["notes"]):
        assert sentence in page.text


def test_every_layer_has_its_bits(page, content):
    found, uniform = (
        next(row for row in content["rows"] if row["name"] == name)["allocation"]["layers"]
        for name in ("found", "best uniform")
    )
    for mine, theirs in zip(found, uniform, strict=True):
        bits = [f"{each['weight_bits']} / {each['activation_bits']}" for each in (theirs, mine)]
        assert f"{mine['name']} 8 / 8 {' '.join(bits)}" in page.text


def test_curves_are_those_of_fine_tuning(page, content):
    rows = {row["name"]: row for row in content["rows"] if row["stage"] == "QAT"}
    figure = page.figure("qat-search-accuracy")
    assert len(figure["data"]) == len(rows) == 2
    for trace in figure["data"]:
        (row,) = [row for name, row in rows.items() if trace["name"].startswith(name)]
        accuracies = [epoch["qat/search_accuracy"] for epoch in row["epochs"]]
        assert trace["x"] == list(range(len(accuracies))) == [0, 1]  # before training, and one epoch
        assert trace["y"] == pytest.approx([100 * accuracy for accuracy in accuracies])
        assert max(accuracies) == accuracies[row["best_epoch"]]


def test_options_and_versions_are_there(page, finished):
    environment = json.loads((finished / "environment.json").read_text())
    for name in PACKAGES[:4]:
        assert f"{name} {environment['packages'][name]}" in page.text
    assert "agent: reinforce seed" not in page.text  # options keep their lines
    for line in ("agent: reinforce", "evaluations: 40", "hidden: 16"):
        assert line in page.text


def test_links_lead_to_the_files_from_wherever_the_page_is(page, finished):
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"][0] != "#"]
    found = {(page.path.parent / unquote(link)).resolve() for link in links}
    assert {finished / name for name in ("best.json", "report.json", "config.yaml", "finetuned.safetensors")} <= found
    assert all(path.is_file() for path in found)
