"""Messages of unknown names: the nearest first, and never a list that nobody reads."""

import pytest

from quantenv.core.errors import SHOWN, one_line, shown, unknown_name

FEW = ["size", "bops", "latency"]
MANY = [f"layer{index}" for index in range(80)]


def test_few_names_are_listed():
    assert str(unknown_name("metric", "bopps", FEW)) == (
        "Unknown metric 'bopps'. Did you mean 'bops'? Known: bops, latency, size."
    )
    assert str(unknown_name("metric", "joules", FEW)).endswith("'joules'. Known: bops, latency, size.")
    assert (
        str(unknown_name("option of agent 'random'", "x", [])) == "Unknown option of agent 'random' 'x'. Known: none."
    )


def test_of_many_names_only_the_nearest_or_the_first_are_said():
    near = str(unknown_name("layer", "layer77x", MANY))
    assert "'layer77'" in near
    assert near.count("layer") < 6
    far = str(unknown_name("layer", "?", MANY))
    assert far.endswith("and 50 more.")
    assert len(far) < 400


def test_long_names_are_cut():
    assert len(str(unknown_name("task", "x" * 10_000, FEW))) < 200
    assert len(str(unknown_name("task", "y", ["x" * 10_000, *FEW]))) < 250


@pytest.mark.parametrize(
    "value", ["x" * 10**6, list(range(10**6)), {"a": "b" * 10**6}, 10**10_000, "a\nb\x00"], ids=range(5)
)
def test_values_are_quoted_on_one_short_line(value):
    text = shown(value)
    assert 0 < len(text) <= SHOWN
    assert text.isprintable()


def test_what_libraries_say_becomes_part_of_a_sentence():
    assert one_line("no such\n  table: \x01\ud800") == "no such table: ??"
    assert len(one_line("x" * 10_000)) == 300
