"""The options that searches use unless others are given: which come first, and that the shipped ones are valid."""

import pytest
import yaml

from agents import agent_class
from experiments.options import agents as agent_options
from experiments.options.agents import read_sections, resolved_options, shipped
from quantenv.core.errors import QuantenvError

SHIPPED = sorted(file.name.removesuffix(".yaml") for file in shipped().iterdir() if file.name.endswith(".yaml"))


@pytest.mark.parametrize("agent", SHIPPED)
def test_shipped_options_are_the_agents_own_and_differ_from_its_defaults(agent):
    config = agent_class(agent).config_class
    for options in read_sections(shipped() / f"{agent}.yaml").values():
        config(**options)
        assert all(getattr(config(), name) != value for name, value in options.items())


def test_a_tasks_section_goes_before_that_of_all_and_what_is_given_before_both(tmp_path, monkeypatch):
    sections = {"any": {"hidden": 8, "clip_range": 0.3, "layers": 1}, "digits": {"hidden": 16, "layers": 3}}
    (tmp_path / "reinforce.yaml").write_text(yaml.safe_dump(sections))
    monkeypatch.setattr(agent_options, "shipped", lambda: tmp_path)
    assert resolved_options("reinforce", "digits", {"layers": 2}) == {"hidden": 16, "clip_range": 0.3, "layers": 2}
    assert resolved_options("reinforce", "resnet20", {}) == sections["any"]
    assert resolved_options("ppo", "digits", {"hidden": 4}) == {"hidden": 4}


@pytest.mark.parametrize("text", ["any: 3", "- a", "any: {", "any: {hidden: 8"])
def test_a_malformed_file_is_named(tmp_path, text):
    (tmp_path / "ppo.yaml").write_text(text)
    with pytest.raises(QuantenvError, match=r"ppo\.yaml"):
        read_sections(tmp_path / "ppo.yaml")


def test_an_unknown_agent_is_answered_with_those_there_are():
    with pytest.raises(QuantenvError, match="reinforce"):
        resolved_options("reinforcement", "digits", {})
