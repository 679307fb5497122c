"""The command: folders of every kind, what it says is missing, what it refuses, and what a page may not hold."""

import re
import sys
from urllib.parse import unquote

import pytest

from tests.digits import FEW_DIGITS
from tests.experiments.reports.conftest import make_report
from tests.resealing import change_config, change_json


def changed(run, **options):
    """Changes options in a run's config."""
    change_config(run / "config.yaml", **options)
    return str(run)


def test_nothing_is_loaded_from_anywhere(report):
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a", "noscript", "div"}
    allowed |= {"section", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "script"}
    allowed |= {"details", "summary", "pre"}
    assert {tag for tag, _ in report.tags} <= allowed
    for _, attributes in report.tags:
        assert not set(attributes) & {"src", "srcset", "data", "action", "style"}
        assert not [name for name in attributes if name.startswith("on")]
        link = attributes.get("href", "#")
        assert link.startswith("#") or (report.path.parent / unquote(link)).is_file()
    (policy,) = [a["content"] for _, a in report.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert not re.search(r"https?://|@import|url\(", " ".join(report.texts))
    assert report.path.stat().st_size < 6e6


def test_the_same_folders_give_the_same_page(report, benchmark_folder, runs):
    again = make_report(report.path.with_name("again.html"), str(benchmark_folder), *map(str, runs))
    assert again.path.read_bytes() == report.path.read_bytes()


def test_it_says_in_short_what_came_of_it(report):
    assert re.search(r"Mixed precision against the best uniform allocation, 2 cases: [a-z ]+ it in [12]", report.text)
    assert "RL against the best baseline, 2 cases:" in report.text
    assert "95% interval over searches" in report.text
    assert "too few for an interval" not in report.text  # the two runs are no side of a comparison
    assert "The runs' own final tables, on the test split:" in report.text


def test_a_run_of_a_network_has_everything_but_the_optimum(finished, tmp_path):
    page = make_report(tmp_path / "r.html", str(finished))
    kinds = ["qat-search-accuracy", "qat-train-loss"]
    kinds += ["pareto", "anytime", "bits-weights", "weights-against-sensitivity", "weights-against-size", "pattern"]
    assert [kind for kind, key in zip(kinds, page.figures, strict=True) if key.startswith(kind)] == kinds
    names = [trace["name"] for trace in page.figure("pareto")["data"]]
    assert names == ["ILP: additive proxy (kl)", "uniform allocations", "reinforce"]
    assert f"{FEW_DIGITS} is no table task" in page.text
    assert "one search: too few for an interval" in page.text
    assert "depthwise" in page.text


def test_nothing_is_evaluated_if_it_may_not_be(finished, tmp_path):
    page = make_report(tmp_path / "r.html", str(finished), "--measure=false")
    assert [trace["name"] for trace in page.figure("pareto")["data"]] == ["reinforce"]
    assert "Nothing was evaluated (--measure=false)" in page.text
    assert [key.split("-")[0] for key in page.figures] == ["qat", "qat", "pareto", "anytime", "bits"]


def test_a_run_of_an_unknown_task_is_drawn_as_far_as_it_goes(run_copy, tmp_path):
    page = make_report(tmp_path / "r.html", changed(run_copy, task="elsewhere"))
    assert "The task elsewhere cannot be made here" in page.text
    assert [key.split("-")[0] for key in page.figures] == ["pareto", "anytime", "bits"]


def test_a_run_of_another_network_is_not_compared_with_the_one_here(run_copy, tmp_path):
    change_json(run_copy / "environment.json", lambda content: content.update(evaluator_identity="another"))
    page = make_report(tmp_path / "r.html", str(run_copy))
    assert "evaluated under identity another" in page.text
    assert "could not be evaluated" in page.text


def test_an_interrupted_run_is_drawn(run_copy, tmp_path):
    (run_copy / "report.json").unlink()
    lines = (run_copy / "episodes.jsonl").read_text().splitlines(keepends=True)
    (run_copy / "episodes.jsonl").write_text("".join(lines[:7]))
    page = make_report(tmp_path / "r.html", str(run_copy))
    assert "the run has not ended" in page.text
    assert "7 of 20" in page.text


def test_names_are_escaped_in_pages_and_no_formulas_in_pictures(run_copy, tmp_path):
    evil = '</script><svg onload=x>&lt;b>"$\\frac$'
    folder = run_copy.rename(tmp_path / "<i>'&amp;$x^{$")
    page = make_report(tmp_path / "r.html", changed(folder, agent=evil))
    assert not [tag for tag, _ in page.tags if tag in ("svg", "i", "b")]
    assert evil in page.text
    data = "".join(page.figures.values())
    assert not re.search("[<>]", data)
    names = [trace.get("name", "") for trace in page.figure("anytime")["data"]]
    assert names == [f"{evil}, seed 0".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")]
    assert len(list(tmp_path.glob("r-*.png"))) == len(page.figures)


def test_what_is_no_folder_of_ours_is_refused(refused, runs, tmp_path):
    assert "is neither a run's nor a benchmark's folder" in refused("report", str(tmp_path))
    assert "is no folder" in refused("report", str(tmp_path / "nowhere"))
    assert "more than once" in refused("report", str(runs[0]), f"{runs[0]}/")
    assert "needs FOLDERS" in refused("report")
    assert "expected the path of a page" in refused("report", str(runs[0]), "--output=report.pdf")
    assert "Cannot write" in refused("report", str(runs[0]), f"--output={runs[0]}/config.yaml/r.html")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("episodes.jsonl", '{"evaluation": 1}\n'),
        ("episodes.jsonl", ""),
        ("config.yaml", "- nothing"),
        ("environment.json", "{}"),
        ("report.json", '{"format": "other"}'),
    ],
)
def test_damaged_runs_are_refused(refused, run_copy, tmp_path, file, content):
    (run_copy / file).write_text(content)
    sentence = refused("report", str(run_copy), f"--output={tmp_path}/r.html")
    assert file in sentence or "No evaluation is recorded" in sentence
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("file", ["leaderboard.json", "curves.json"])
@pytest.mark.parametrize("content", ["[", "{}", '{"curves": [{"agent": 1}]}'])
def test_damaged_benchmarks_are_refused(refused, benchmark_copy, tmp_path, file, content):
    (benchmark_copy / file).write_text(content)
    assert file in refused("report", str(benchmark_copy), f"--output={tmp_path}/r.html")


def test_without_plotly_it_names_the_extra(refused, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert "quantenv[benchmark]" in refused("report", str(runs[0]))
