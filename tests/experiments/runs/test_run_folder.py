import re

import pytest

from experiments.options.parsing import parse_options
from experiments.options.runs import TrainOptions
from experiments.runs.run_folder import RunFolder
from quantenv.core.errors import QuantenvError
from quantenv.core.records import with_comment
from tests.resealing import change_config, change_json


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


@pytest.mark.parametrize("content", ["", "task: [", "- 1\n", "\0", "[" * 5000])
def test_damaged_config_is_refused(tmp_path, content):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    for text, said in {content: "no checksum at its end", with_comment(content): "config.yaml"}.items():
        folder.config.write_text(text)
        with pytest.raises(QuantenvError, match=said):
            folder.options()


def test_an_edited_config_is_refused_but_a_copy_of_it_can_be_given(tmp_path):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path), seed=7))
    text = folder.config.read_text()
    folder.config.write_text(text.replace("seed: 7", "seed: 8"))
    with pytest.raises(QuantenvError, match=r"does not match its checksum: .* give a copy of it to --config"):
        folder.options()
    assert parse_options(TrainOptions, "train", ["--config", str(folder.config)]).seed == 8


def test_config_of_another_version_names_the_unknown_option(tmp_path):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    change_config(folder.config, evaluation=3)
    with pytest.raises(QuantenvError, match=r"'evaluation' of .*config\.yaml\. Did you mean 'evaluations'"):
        folder.options()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON, or is truncated"),
        ('{"a": ', "not JSON, or is truncated"),
        ("[]", "expected names with values"),
        ("{}", "lacks the key 'format'"),
        ("[" * 5000, "more than 64 deep"),
    ],
)
def test_damaged_json_is_refused(tmp_path, content, said):
    folder = RunFolder.create(TrainOptions(runs=str(tmp_path)))
    folder.report.write_text(content)
    with pytest.raises(QuantenvError, match=rf"report\.json .*{said}"):
        folder.read_report()


def rows(report):
    return report["rows"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: report.update(complete=1), "complete is 1; expected true or false"),
        (lambda report: report.update(evaluations=-1), "evaluations is -1"),
        (lambda report: report.update(budgets={"size": "1KiB"}), r"budgets\.size is '1KiB'; expected a number"),
        (lambda report: report.update(budgets={"weight": 1.0}), "a key of budgets is wrong"),
        (lambda report: report.update(verdicts="won"), "verdicts is 'won'; expected a list"),
        (lambda report: report.update(notes=[None]), r"notes\[0\] is null; expected text"),
        (lambda report: report.update(winner="us"), "unknown key 'winner'"),
        (lambda report: report.pop("rows"), "lacks the key 'rows'"),
        (lambda report: report.update(format="quantenv-report-0"), "format is 'quantenv-report-0'; expected"),
        (lambda report: rows(report)[0].update(samples=0), r"rows\[0\]\.samples is 0"),
        (lambda report: rows(report)[0].update(correct=10**6), "row 'float' has 1000000 correct of"),
        (lambda report: rows(report)[0].update(loss="x"), r"rows\[0\]\.loss is 'x'"),
        (lambda report: rows(report)[0].update(costs={"size": None}), r"costs\.size is null"),
        (lambda report: rows(report)[0].update(within_budget="no"), "within_budget is 'no'; expected true or false or"),
        (lambda report: rows(report)[0].update(name=""), "name has 0 characters"),
        (lambda report: rows(report)[1].update(allocation=[]), r"allocation is \[\]"),
        (lambda report: rows(report)[1]["allocation"].pop("layers"), "allocation of row .* lacks the key 'layers'"),
        (lambda report: rows(report)[1]["allocation"].update(task="x"), "allocation of row .* match its checksum"),
    ],
)
def test_a_report_is_held_to_its_schema(run_copy, change, said):
    change_json(run_copy / "report.json", change)
    with pytest.raises(QuantenvError, match=rf"report\.json .*{said}"):
        RunFolder(run_copy).read_report()


@pytest.mark.parametrize("command", [("train", "--resume"), ("report",), ("validate", "--sample=1")], ids=" ".join)
def test_commands_refuse_an_unsound_report(run_copy, refused, command):
    change_json(run_copy / "report.json", lambda report: rows(report)[0].update(samples=0))
    assert "report.json does not fit: rows[0].samples is 0" in refused(*command, str(run_copy))
