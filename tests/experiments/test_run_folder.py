import re

import pytest
import yaml

from experiments.command_line import parse_options
from experiments.options import TrainOptions
from experiments.run_folder import RunFolder
from quantenv.errors import QuantenvError


def test_created_where_the_design_says_and_never_twice(tmp_path):
    options = TrainOptions(agent="random", seed=7, runs=str(tmp_path))
    folders = [RunFolder.create(options).path for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.parent == tmp_path / "digits" / "random"
        assert re.fullmatch(r"7-\d{8}-\d{6}(-\d+)?", folder.name)


def test_config_loads_again_both_ways(tmp_path):
    options = TrainOptions(budget={"size": 0.5, "bops": "1MBOPs"}, runs=str(tmp_path), pinned="first_last")
    folder = RunFolder.create(options)
    assert RunFolder.open(folder.path).options() == options
    assert parse_options(TrainOptions, "train", ["--config", str(folder.config)]) == options


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(QuantenvError, match="Cannot make a run folder"):
        RunFolder.create(TrainOptions(runs=str(tmp_path / "runs")))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(QuantenvError, match="There is no run folder"):
        RunFolder.open(tmp_path / "missing")


@pytest.mark.parametrize("content", ["", "task: [", "- 1\n", "\0"])
def test_damaged_config_is_refused(tmp_path, content):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    folder.config.write_text(content)
    with pytest.raises(QuantenvError, match=r"config\.yaml"):
        folder.options()


def test_config_of_another_version_names_the_unknown_option(tmp_path):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    content = yaml.safe_load(folder.config.read_text()) | {"evaluation": 3}
    folder.config.write_text(yaml.safe_dump(content))
    with pytest.raises(QuantenvError, match=r"'evaluation' of .*config\.yaml\. Did you mean 'evaluations'"):
        folder.options()


@pytest.mark.parametrize("content", ["", '{"a": ', "[]"])
def test_damaged_json_is_refused(tmp_path, content):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    folder.report.write_text(content)
    with pytest.raises(QuantenvError, match=r"report\.json is damaged or truncated"):
        folder.read_json(folder.report, lambda report: report["rows"])
