"""The page in a real browser: everything is drawn, nothing fails, and nothing is asked of any network."""

import re
import shutil
import subprocess

import pytest

from tests.experiments.reports.conftest import make_report
from tests.resealing import change_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def opened(page, profile, *options):
    """Opens a page and returns the document after its scripts ran, and what the console said."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail(f"None of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    arguments = [
        browser,
        *OFFLINE,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=60000",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [*arguments, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_everything_is_drawn_without_an_error(report, tmp_path):
    document, console = opened(report.path, tmp_path)
    assert not console
    assert 'data-finished="yes"' in document
    assert '<div id="errors"></div>' in document
    assert document.count('data-drawn="yes"') == len(report.figures) == 11
    # An SVG for each, with axes titled in words.
    assert document.count('class="main-svg"') >= len(report.figures)
    for words in ("search accuracy (%)", "evaluations (logarithmic)", "mean bits of weights", "kind of layer"):
        assert re.search(rf"<text[^>]*>{re.escape(words)}</text>", document)
    for heading in ("In short", "What is missing, and why", "Searches", "Leaderboard default", "How to read it"):
        assert f"{heading}</h" in document
    assert "true Pareto front (table)</text>" in document


def test_names_are_text_and_not_markup(run_copy, tmp_path):
    evil = (
        "<img src=x onerror=\"document.body.dataset.hacked='yes'\"><script>document.body.dataset.hacked='yes'</script>"
    )
    change_config(run_copy / "config.yaml", agent=evil)
    page = make_report(tmp_path / "evil.html", str(run_copy))
    document, console = opened(page.path, tmp_path / "profile")
    assert not console
    assert 'data-hacked="yes"' not in document
    assert "<img" not in document
    assert 'data-finished="yes"' in document
    assert "&lt;img src=x" in document
