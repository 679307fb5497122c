"""That what the documentation shows runs, and that nothing has been forgotten. `make docs` checks its links."""

import re
import runpy
import sys
from pathlib import Path

import gymnasium
import pytest

from agents.base import BUILT_IN
from quantenv.hardware import device_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PRINTED = {
    "environment": r"0\.00 points below the best of all 65,536 allocations",
    "own_agent": r"after 320 evaluations: \d\.\d\d points below the best allocation",
    "own_device": r"open options of the first layer \(2, 4, 6 and 8 bits\): \[0 1 0 1\]",
    "own_network": r"found \| QAT",
    "pipeline": r"test accuracy after fine-tuning: \d\d\.\d\d%",
}


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import generate

    yield generate
    del sys.modules["generate"]


def test_every_example_is_tried():
    assert {path.stem for path in (DOCS / "examples").glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_examples_run_and_print_what_they_are_said_to(name, capsys):
    runpy.run_path(str(DOCS / "examples" / f"{name}.py"), run_name="__main__")
    assert re.search(PRINTED[name], capsys.readouterr().out)


def test_every_environment_has_a_page_that_the_site_lists(generate):
    ids = {name for name in gymnasium.registry if name.startswith("quantenv/")}
    pages = generate.environment_pages()
    assert set(pages) == ids
    listed = (DOCS / "environments.md").read_text()
    for name, page in pages.items():
        assert f"generated/env-{name.partition('/')[2]}\n" in listed
        for section in ("Description", "Action Space", "Observation Space", "Reward", "All arguments"):
            assert section in page, (name, section)


def test_every_agent_has_a_page_with_all_its_options(generate):
    table = generate.agent_table()
    for name in BUILT_IN:
        page = generate.agent_page(name)
        assert f"[{name}](agent-{name}.md)" in table
        for option in vars(generate.agent_class(name).config_class()):
            assert f"| `{option}` |" in page, (name, option)
    learners = {name for name, target in BUILT_IN.items() if target.startswith("agents.rl.")}
    assert set(generate.TRAITS) == learners


def test_every_device_is_described(generate):
    assert all(f"## {name}\n" in generate.device_page() for name in device_names())


def test_paths_that_pages_name_are_there():
    for page in [*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md"), ROOT / "README.md"]:
        for path in re.findall(r"`((?:quantenv|agents|experiments|tests|docs)/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), (page.name, path)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link
