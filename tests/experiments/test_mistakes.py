"""Mistakes on the command line and in configurations: each is one sentence in plain words that says what to do."""

import shlex
from pathlib import Path

import pytest

#: Words of the parser's trade, which no user has to know.
JARGON = (
    "Union",
    "union",
    "subtype",
    "Parser key",
    "<class",
    "pydantic",
    "jsonargparse",
    "msgspec",
    "NoneType",
    "dict",
)
BIG = "9" * 400

MISTAKES = [
    ("train --evaluation 3", "Unknown option '--evaluation' of `quantenv train`. Did you mean '--evaluations'?"),
    ("train --evaluation=3", "Unknown option '--evaluation' of `quantenv train`. Did you mean '--evaluations'?"),
    ("train --xyzzy=3", "Unknown option '--xyzzy' of `quantenv train`. `--help` lists those that there are."),
    ("train -e 3", "Unknown option '-e' of `quantenv train`. `--help` lists those that there are."),
    ("train digits", "`quantenv train` does not expect 'digits'; see `quantenv train --help`."),
    ("train --seed", "Option --seed expects a value, as --seed=VALUE."),
    ("train --seed --top_k=3", "Option --seed expects a value, as --seed=VALUE."),
    ("train --seed=null", "--seed is null; expected a whole number."),
    ("train --seed=1.5", "--seed is 1.5; expected a whole number."),
    ("train --seed=true", "--seed is true; expected a whole number."),
    ("train --seed=-1", "--seed is -1; expected a whole number from 0 to 4294967295."),
    ("train --seed -1", "--seed is -1; expected a whole number from 0 to 4294967295."),
    ("train --seed=x", "--seed is 'x'; expected a whole number."),
    ("train --seed=", "--seed is ''; expected a whole number."),
    ("train --seed=[1,2]", "--seed is '[1,2]'; expected a whole number."),
    ("train --evaluations=0", "--evaluations is 0; expected a whole number of at least 1."),
    ("train --evaluations=1e3", "--evaluations is 1000.0; expected a whole number."),
    (f"train --evaluations={BIG}", "--evaluations is inf; expected a whole number."),
    ("train --evaluations=99999999999999999999", "expected a whole number of at most 19 digits."),
    ("train --threads=100000", "--threads is 100000; expected a whole number from 1 to 512."),
    ("train --workers=100000", "--workers is 100000; expected a whole number from 1 to 1024."),
    ("train --qat.processes=100000", "Fine-tuning's processes is 100000; expected a whole number from 1 to 1024."),
    ("benchmark --workers=100000", "--workers is 100000; expected a whole number from 1 to 1024."),
    ("enumerate --workers=0", "--workers is 0; expected a whole number from 1 to 1024."),
    ("sensitivity --threads=0", "--threads is 0; expected a whole number from 1 to 512."),
    ("train --budget=nan", "--budget is nan; expected a number that is neither infinite nor NaN."),
    ("train --budget=-inf", "--budget is -inf; expected a number that is neither infinite nor NaN."),
    (f"train --budget={BIG}", "--budget is inf; expected a number that is neither infinite nor NaN."),
    ("train --budget='{size: [1]}'", "--budget.size is [1]; expected a number or text."),
    ("train --bits=x", "--bits is ['x']; expected whole numbers, as 2,4,8 or null."),
    ("train --bits=2,,4", "--bits is [2, '', 4]; expected whole numbers, as 2,4,8 or null."),
    (
        "train --bits=[2,4",
        "--bits is not plain YAML: line 1, column 5: while parsing",
    ),
    ("pareto --bits=2.5", "--bits is [2.5]; expected whole numbers, as 2,4,8 or null."),
    ("benchmark --budgets=a,b", "--budgets is ['a', 'b']; expected numbers, as 0.4,0.5."),
    ("benchmark --seeds=0", "--seeds is 0; expected a whole number of at least 1."),
    (
        "train --constraint_options.infeasible_reward=x",
        "--constraint_options.infeasible_reward is 'x'; expected a number.",
    ),
    ("train --constraint_options=3", "--constraint_options is 3; expected numbers by name, as {name: value}."),
    ("train --agent_options=3", "--agent_options is 3; expected plain values by name, as {name: value}."),
    ("train --agent_options='{1: 2}'", "--agent_options has the name 1; expected text: put it in quotes."),
    ("train --agent_options.hidden=many", "Option 'hidden' of agent 'reinforce' is 'many'; expected a whole number."),
    ("train --agent_options.hidden=null", "Option 'hidden' of agent 'reinforce' is null; expected a whole number."),
    ("train --agent_options.hidden=true", "Option 'hidden' of agent 'reinforce' is true; expected a whole number."),
    ("train --agent=random --agent_options.x=3", "There are no options of agent 'random': leave 'x' out."),
    ("benchmark --agents=random --agent_options.random.x=3", "There are no options of agent 'random': leave 'x' out."),
    ("train --qat=3", "Option --qat is several options: give each by its own name, such as --qat.epochs=VALUE."),
    ("train --qat.epochs=1.5", "--qat.epochs is 1.5; expected a whole number."),
    ("train --qat.flip=maybe", "--qat.flip is 'maybe'; expected true or false."),
    ("train --qat.flip maybe", "--qat.flip is 'maybe'; expected true or false."),
    ("train --qat.learning_rate=-1", "Fine-tuning's learning_rate is -1.0; expected a number of at least 0."),
    ("train --qat.ema=1", "Fine-tuning's ema is 1, which would never move; expected less, such as 0.999."),
    ("train --config=", "Cannot read the options"),
    ("train --config=--", "Cannot read the options --: No such file or directory."),
    ("train --config --", "Cannot read the options --: No such file or directory."),
    ("train --config=missing.yaml", "Cannot read the options missing.yaml: No such file or directory."),
    ("train --config=http://localhost/x.yaml", "No such file or directory."),
    ("train --config=.", "Cannot read the options .: it is a folder; expected a file."),
    ("train --config=/dev/zero", "Cannot read the options /dev/zero: it is a pipe, socket or device; expected a file."),
    ("validate", "`quantenv validate` needs FOLDER; see `quantenv validate --help`."),
    ("validate a b", "`quantenv validate` does not expect 'b'; see `quantenv validate --help`."),
    ("report", "`quantenv report` needs FOLDERS; see `quantenv report --help`."),
    ("solve", "`quantenv solve` needs PROBLEM; see `quantenv solve --help`."),
    ("solve x.json --time_limit=nan", "--time_limit is nan; expected a number that is neither infinite nor NaN."),
    ("store prune --older_than_days=x", "--older_than_days is 'x'; expected a number or null."),
    ("layers --model_arguments=3", "--model_arguments is 3; expected"),
    ("tune --seed=-1", "--seed is -1; expected a whole number from 0 to 4294967295."),
    ("pretrain --epochs=0", "--epochs is 0; expected a whole number of at least 1."),
    ("pretrain --compute=gpu", "Unknown device to train on 'gpu'."),
    ("train --task=" + "x" * 5000, "Unknown task"),
    ("train --" + "x" * 5000, "Unknown option"),
]

FILES = [
    ("", "holds no options; expected some by name, such as seed: 3."),
    ("# nothing\n", "holds no options; expected some by name, such as seed: 3."),
    ("[]", "holds no options; expected some by name, such as seed: 3."),
    ("3", "holds no options; expected some by name, such as seed: 3."),
    ("seed: null", "mine.yaml: seed is null; expected a whole number."),
    ("seed: 1.0", "mine.yaml: seed is 1.0; expected a whole number."),
    ("seed: '1'", "mine.yaml: seed is '1'; expected a whole number."),
    ("seed: true", "mine.yaml: seed is true; expected a whole number."),
    ("seed: .nan", "is no finite number"),
    ("seed: 1\nseed: 2", "the key 'seed' stands twice"),
    (f"seed: {BIG}", "a whole number has 400 digits; expected at most 20"),
    ("task: null", "mine.yaml: task is null; expected text."),
    ("task: 3", "mine.yaml: task is 3; expected text."),
    ("bits: 8", "mine.yaml: bits is 8; expected whole numbers, as 2,4,8 or null."),
    ("bits: [2, null]", "mine.yaml: bits is [2, None]; expected whole numbers, as 2,4,8 or null."),
    ("qat: null", "mine.yaml: qat is null; expected options by name, as {epochs: ...}."),
    ("qat: {batch_size: null}", "mine.yaml: qat.batch_size is null; expected a whole number."),
    ("qat: {epoch: 3}", "Unknown option 'qat.epoch' of `quantenv train` in mine.yaml. Did you mean 'qat.epochs'?"),
    ("qat.epochs: 3", "Unknown option 'qat.epochs' of `quantenv train` in mine.yaml."),
    ("agent_options: null", "mine.yaml: agent_options is null; expected plain values by name, as {name: value}."),
    ("agent_options: {hidden: [3]}", "mine.yaml: agent_options.hidden is [3]; expected a plain value."),
    ("evaluation: 3", "Unknown option 'evaluation' of `quantenv train` in mine.yaml. Did you mean 'evaluations'?"),
    ("config: other.yaml", "Unknown option 'config' of `quantenv train` in mine.yaml."),
    ("ray_address: evil:6379\npool: ray", "mine.yaml: ray_address is 'evil:6379', and a Ray cluster may run code here"),
    ("[" * 5000, "lists and mappings lie in each other more than 64 deep"),
    ("a: &x [1]\nb: *x", "anchors and aliases"),
]


def check(sentence: str, expected: str) -> None:
    assert expected in sentence
    assert len(sentence) < 500
    assert not [word for word in JARGON if word in sentence]


@pytest.mark.parametrize(("line", "expected"), MISTAKES, ids=lambda text: text[:60])
def test_on_the_command_line(line, expected, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(refused(*shlex.split(line)), expected)


@pytest.mark.parametrize(("content", "expected"), FILES, ids=lambda text: text[:40])
def test_in_a_configuration(content, expected, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(content)
    sentence = refused("train", "--config=mine.yaml")
    check(sentence, expected)
    assert "mine.yaml" in sentence


def test_a_configuration_that_is_no_text_is_named(refused, tmp_path):
    for content in (b"\xff\xfe\x00s", b"seed: 1\x00", b"\x00" * 100):
        (tmp_path / "mine.yaml").write_bytes(content)
        check(refused("train", f"--config={tmp_path / 'mine.yaml'}"), "mine.yaml")
