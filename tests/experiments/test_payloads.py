"""No file and no option runs code: payloads in every command that reads a folder or a configuration."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from experiments.cli.main import COMMANDS, main
from experiments.options.runs import FinetuneOptions, TrainOptions, ValidateOptions
from quantenv.core.records import COMMENT, with_comment
from tests.experiments.conftest import SHORT

#: Options with values of which a payload could be one, by command; `{marker}` is the file that a payload would make.
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": "touch {marker}", "shell": True}}
SPELLINGS = {
    "in a mapping": lambda payload: {"x": payload},
    "instead of it": lambda payload: payload,
    "in a list": lambda payload: [payload],
    "in a mapping of mappings": lambda payload: {"random": {"x": payload}},
    "in a list in a mapping": lambda payload: {"x": [payload]},
    "deep": lambda payload: {"x": {"y": [{"z": payload}]}},
    "as JSON in a text": lambda payload: json.dumps(payload),
    "as a name": lambda payload: {"class_path": payload["class_path"]},
}
OPTIONS = {
    "train": [
        "agent_options",
        "haq",
        "constraint_options",
        "reward_weights",
        "pinned",
        "qat",
        "bits",
        "budget",
        "seed",
    ],
    "finetune": ["qat", "threads", "channel_groups"],
    "validate": ["sample", "all"],
    "benchmark": ["agent_options", "agents", "budgets", "seeds", "checkpoints"],
    "report": ["measure"],
    "tune": ["agent_options", "budgets", "seeds"],
    "enumerate": ["bits", "workers"],
    "prepare": ["threads", "channel_groups"],
    "optimum": ["budget", "json"],
    "pareto": ["agent_options", "budget", "bits"],
    "sensitivity": ["images", "relative_error"],
    "solve": ["budget", "bits", "pinned", "time_limit"],
    "pretrain": ["flip", "epochs", "channel_groups"],
    "layers": ["model_arguments", "json"],
    "store prune": ["older_than_days", "yes"],
}
#: What a command needs besides.
POSITIONAL = {"validate": ["folder"], "report": ["folder"], "solve": ["problem.json"]}
#: YAML that other readers make objects of.
TAGS = (
    "!!python/object/apply:subprocess.Popen [['touch', '{marker}']]",
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:subprocess.Popen [['touch', '{marker}']]",
    "!!python/name:subprocess.Popen",
    "!!python/module:antigravity",
    "!!python/object:subprocess.Popen {{args: ['touch', '{marker}']}}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
    "${{oc.env:HOME}}",
    "!include {marker}",
)


@pytest.fixture
def payload(tmp_path, monkeypatch, refused):
    """Refuses: runs a command that must be refused in one sentence and run nothing."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "PWNED"

    class Payload:
        popen = json.loads(json.dumps(POPEN).replace("{marker}", str(marker)))

        @staticmethod
        def refuses(*arguments: str) -> str:
            sentence = refused(*arguments)
            assert not marker.exists(), sentence
            assert len(sentence) < 700, sentence
            for word in ("jsonargparse", "Parser", "Union", "subtype", "<class", "Traceback", "init_args={"):
                assert word not in sentence
            return sentence

    Payload.marker = marker
    yield Payload
    assert not marker.exists()


def test_every_command_that_reads_a_configuration_is_here():
    without = {"tasks", "agents", "devices", "store"}  # no options but texts
    assert {command.split()[0] for command in OPTIONS} | without == set(COMMANDS)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", OPTIONS)
def test_payloads_as_values_of_options(command, spelling, payload):
    for option in OPTIONS[command]:
        value = SPELLINGS[spelling](payload.popen)
        Path("mine.yaml").write_text(yaml.safe_dump({option: value}))
        line = [*command.split(), *POSITIONAL.get(command, [])]
        text = value if isinstance(value, str) else json.dumps(value)
        in_file = payload.refuses(*line, "--config=mine.yaml")
        payload.refuses(*line, f"--{option}={text}")
        payload.refuses(*line, f"--{option}", text)
        if option not in ("budget", "pinned"):  # which may be any text, until it is looked at
            assert option in in_file
            assert "mine.yaml" in in_file


@pytest.mark.parametrize("command", OPTIONS)
def test_payloads_instead_of_options(command, payload):
    line = [*command.split(), *POSITIONAL.get(command, [])]
    for content in (payload.popen, [payload.popen], {"class_path": "x"}, {"config": payload.popen}, "text"):
        Path("mine.yaml").write_text(yaml.safe_dump(content))
        assert "mine.yaml" in payload.refuses(*line, "--config=mine.yaml")
        payload.refuses(*line, f"--config={json.dumps(content)}")
    payload.refuses(*line, "--class_path=subprocess.Popen", f"--init_args={json.dumps(payload.popen['init_args'])}")
    payload.refuses(*line, "--config.class_path=subprocess.Popen")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("command", ["train", "benchmark", "tune", "layers"])
def test_yaml_that_makes_objects(command, tag, payload):
    text = tag.format(marker=payload.marker)
    option = "model_arguments" if command == "layers" else "agent_options"
    for content in (f"{option}: {text}\n", f"{option}: {{x: {text}}}\n", f"{text}\n", f"seed: {text}\n"):
        Path("mine.yaml").write_text(content)
        assert "mine.yaml" in payload.refuses(command, "--config=mine.yaml")
    if text.startswith("!!"):
        assert f"--{option}" in payload.refuses(command, f"--{option}={{x: {text}}}")


@pytest.mark.parametrize("name", ["class_path", "init_args", "dict_kwargs", "x.class_path"])
@pytest.mark.parametrize("option", ["agent_options", "haq", "constraint_options", "pinned"])
def test_dotted_names_make_no_class(option, name, payload):
    payload.refuses("train", f"--{option}.{name}=subprocess.Popen")


def test_environment_variables_are_no_options(payload, monkeypatch):
    for name in ("QUANTENV_AGENT_OPTIONS", "QUANTENV_TRAIN__AGENT_OPTIONS", "JSONARGPARSE_AGENT_OPTIONS", "APP_CONFIG"):
        monkeypatch.setenv(name, json.dumps({"x": payload.popen}))
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("QUANTENV_CONFIG", json.dumps({"agent_options": {"x": payload.popen}}))
    monkeypatch.setenv("QUANTENV_SEED", "x")
    assert main(["agents"]) == 0
    payload.refuses("train", "--task=digit")


def _poisoned(folder: Path, file: str, change: dict) -> None:
    content = yaml.safe_load((folder / file).read_text())
    (folder / file).write_text(with_comment(yaml.safe_dump(content | change)))


READERS = (
    ("report", "{folder}"),
    ("validate", "{folder}"),
    ("train", "--resume={folder}"),
    ("train", "--init_from={folder}"),
    ("train", "--config={folder}/config.yaml"),
    ("finetune", "--run={folder}"),
    ("finetune", "--config={folder}/config.yaml"),
    ("pretrain", "--resume={folder}"),
)


@pytest.mark.parametrize("spelling", ["in a mapping", "instead of it", "deep"])
@pytest.mark.parametrize("option", ["agent_options", "haq", "constraint_options", "qat", "pinned", "class_path"])
def test_run_folders(option, spelling, payload, run_copy):
    _poisoned(run_copy, "config.yaml", {option: SPELLINGS[spelling](payload.popen)})
    for reader in READERS:
        assert "config.yaml" in payload.refuses(*(part.format(folder=run_copy) for part in reader))


@pytest.mark.parametrize("tag", TAGS)
def test_run_folders_with_tags(tag, payload, run_copy):
    before = (run_copy / "config.yaml").read_text().rpartition(COMMENT)[0]
    for line in (f"agent_options: {tag}", f"{tag}", f"seed: {tag}"):
        (run_copy / "config.yaml").write_text(with_comment(before + line.format(marker=payload.marker) + "\n"))
        for reader in READERS:
            assert "config.yaml" in payload.refuses(*(part.format(folder=run_copy) for part in reader))


@pytest.mark.parametrize("file", ["environment.json", "top_k.json", "best.json", "report.json", "episodes.jsonl"])
def test_other_files_of_a_run(file, payload, run_copy):
    (run_copy / file).write_text(json.dumps(payload.popen) + "\n")
    readers = [["validate", str(run_copy), "--sample=0"]]
    if file == "best.json":
        readers += [["finetune", f"--run={run_copy}"]]
    elif file != "top_k.json":
        readers += [["report", str(run_copy)]]
    codes = [main(reader) for reader in readers]
    assert any(codes), "nothing was wrong with it"
    assert not payload.marker.exists()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_suites_of_benchmarks(spelling, payload):
    folder = Path("benchmark")
    folder.mkdir()
    for name in ("evaluations.parquet", "jobs.json", "leaderboard.json", "curves.json"):
        (folder / name).touch()
    suite = yaml.safe_dump({"agent_options": SPELLINGS[spelling](payload.popen)})
    (folder / "suite.yaml").write_text(with_comment(suite))
    for line in (("report", "benchmark"), ("validate", "benchmark")):
        assert "suite.yaml" in payload.refuses(*line)
    assert "suite.yaml" in payload.refuses("benchmark", "--config=benchmark/suite.yaml")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_files_that_options_name(spelling, payload):
    value = SPELLINGS[spelling](payload.popen)
    Path("file.yaml").write_text(yaml.safe_dump(value))
    Path("file.json").write_text(json.dumps(value))
    Path("file.npz").write_bytes(json.dumps(value).encode())
    for line in (
        ["optimum", "--device=file.yaml"],
        ["optimum", "--task=file.npz"],
        ["devices", "--device=file.yaml"],
        ["solve", "file.json"],
        ["solve", "file.npz"],
        ["finetune", "--allocation=file.json"],
        ["tune", "--space=file.yaml", "--agent=random"],
        ["store", "merge", "file.json", "--store=store.sqlite"],
        ["train", "--task=file.npz"],
    ):
        payload.refuses(*line)


def test_options_of_a_run_still_read_as_they_were(finished, tmp_path):
    from experiments.runs.run_folder import RunFolder

    options = RunFolder.open(finished).options()
    assert options.agent_options["hidden"] == 16
    assert options.qat.epochs == 1
    copy = Path(shutil.copytree(finished, tmp_path / "again"))
    (copy / "report.json").unlink()
    assert main(["train", f"--resume={copy}"]) == 0
    assert SHORT[0] == f"--evaluations={options.evaluations}"


@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions, ValidateOptions])
def test_no_option_may_hold_an_object(kind):
    """Every type is made of plain values: a new option of another type is seen here."""
    import importlib
    import typing
    from dataclasses import fields, is_dataclass

    plain = {bool, int, float, str, type(None)}

    def check(part):
        if is_dataclass(part):
            for field in fields(part):
                check(field.type)
        elif typing.get_args(part):
            for inner in typing.get_args(part):
                check(inner)
        else:
            assert part in plain, part

    check(kind)
    for command in COMMANDS.values():
        if command.options:
            module, _, name = command.options.partition(":")
            check(getattr(importlib.import_module(module), name))
