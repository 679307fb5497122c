from dataclasses import dataclass, field
from importlib import resources

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.options.parsing import flatten, parse_options, to_yaml
from experiments.options.runs import FinetuneOptions, TrainOptions
from quantenv.core.errors import QuantenvError
from quantenv.training import FinetuneConfig


@dataclass(frozen=True)
class Inner:
    """Inner options."""

    epochs: int = 3
    """Passes."""


@dataclass(frozen=True)
class Outer:
    """Outer options."""

    name: str = "plain"
    """A name."""
    inner: Inner = field(default_factory=Inner)
    """The inner ones."""


def test_later_layers_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: file\ninner: {epochs: 7}\n")
    defaults = {"name": "given", "inner.epochs": 5}
    assert parse_options(Outer, "none", []) == Outer()
    assert parse_options(Outer, "none", [], defaults) == Outer("given", Inner(5))
    assert parse_options(Outer, "none", ["--config", str(file)], defaults) == Outer("file", Inner(7))
    line = ["--config", str(file), "--inner.epochs=9"]
    assert parse_options(Outer, "none", line, defaults) == Outer("file", Inner(9))


@pytest.mark.parametrize("command", ["train", "finetune", "validate"])
def test_every_command_with_many_options_ships_a_configuration(command):
    content = yaml.safe_load((resources.files("experiments.configs") / f"{command}.yaml").read_text())
    assert content


def test_shipped_configuration_reaches_the_options():
    content = yaml.safe_load((resources.files("experiments.configs") / "train.yaml").read_text())
    options = parse_options(TrainOptions, "train", [])
    assert {name: getattr(options, name) for name in content} == content


def test_what_a_run_fixes_stands_above_the_shipped_configuration():
    assert parse_options(FinetuneOptions, "finetune", []).threads == 1  # as shipped
    assert parse_options(FinetuneOptions, "finetune", [], {"threads": 3}).threads == 3
    assert parse_options(FinetuneOptions, "finetune", ["--threads=2"], {"threads": 3}).threads == 2


@settings(deadline=None)  # files are written
@given(
    budget=st.one_of(
        st.floats(0.01, 1),
        st.sampled_from(["18KiB", "size=0.4,latency=3ms"]),
        st.dictionaries(st.sampled_from(["size", "bops"]), st.floats(0.01, 1), min_size=1),
    ),
    seed=st.integers(0, 2**31),
    bits=st.lists(st.integers(1, 8), min_size=1, unique=True),
    pinned=st.sampled_from([None, "first_last", {"stem": 8, "classifier": 4}]),
)
def test_yaml_of_options_reads_back_the_same(tmp_path_factory, budget, seed, bits, pinned):
    options = TrainOptions(budget=budget, seed=seed, bits=bits, pinned=pinned, agent_options={"hidden": 8})
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(options))
    assert parse_options(TrainOptions, "train", ["--config", str(file)]) == options


def test_hyphens_in_an_options_name_are_underscores_and_those_in_its_value_stay():
    given = ["--top-k=3", "--qat.epochs=2", "--runs=my-runs", "--agent-options.learning_rate=0.1", "--store", "a--b"]
    options = parse_options(TrainOptions, "train", given)
    assert (options.top_k, options.qat.epochs, options.runs, options.store) == (3, 2, "my-runs", "a--b")
    assert options.agent_options == {"learning_rate": 0.1}


def test_flatten_joins_names_with_dots():
    assert flatten(Outer()) == {"name": "plain", "inner.epochs": 3}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("nmae: x\n", "Did you mean 'name'"),
        ("inner: [1]\n", "inner"),
        ("name: [", "pars"),
        ("inner: {epochs: x}", "x"),
    ],
)
def test_bad_configuration_files_are_refused_in_one_line(tmp_path, content, expected):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(QuantenvError, match=expected) as error:
        parse_options(Outer, "none", ["--config", str(file)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ([], False),
        (["--fast"], True),
        (["--fast=true"], True),
        (["--fast", "true"], True),
        (["--fast", "false"], False),
    ],
)
def test_a_switch_takes_a_value_or_none(line, value):
    @dataclass(frozen=True)
    class Switch:
        """A switch."""

        fast: bool = False
        """Whether it is fast."""
        count: int = 0
        """Another option."""

    assert parse_options(Switch, "none", [*line, "--count", "3"]) == Switch(value, 3)


@dataclass(frozen=True)
class Own:
    inner: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(epochs=7, learning_rate=0.25))


def test_options_within_options_have_the_defaults_of_the_command():
    changed = parse_options(Own, "own", ["--inner.epochs=3"]).inner
    assert changed == FinetuneConfig(epochs=3, learning_rate=0.25)
    assert parse_options(Own, "own", []).inner == Own().inner
