"""`make results` on small results in a folder of their own, and what is recorded in the repository."""

import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from agents.base import BUILT_IN
from experiments.studies.record import INPUTS, ROOT, WORK, main
from experiments.studies.recorded import CARRIERS, DATA_VARIABLE, NETWORKS, Recorded, located
from experiments.studies.recorded_files import IMAGES, PARTS, RECORDED
from experiments.studies.recorded_inputs import Place, file_hash, numbers_hash, read_inputs, stale
from experiments.studies.source_tree import SourceTree
from quantenv.core.errors import QuantenvError
from tests.experiments.small_results import FILES, MADE, TABLE
from tests.synthetic_table import synthetic_table


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "repository"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(content))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "value.txt").write_text("21")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    return root


def runs(root):
    """Returns which commands ran since this was asked last."""
    log = root / "log.txt"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def check(root, capsys, table=MADE):
    """Returns the exit code of --check, and what it prints."""
    capsys.readouterr()
    code = main(["--check"], root, table)
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def made(root, capsys):
    assert main([], root, MADE) == 0
    assert runs(root) == ["first", "second"]
    return root


def test_everything_is_made_in_order_and_not_again(made, capsys):
    assert (made / "out" / "second.txt").read_text() == "42 False word"
    assert check(made, capsys) == (0, [])
    assert main([], made, MADE) == 0
    assert runs(made) == []
    assert not [path for path in (made / WORK).iterdir() if path.is_dir()]
    known = read_inputs(made / INPUTS, MADE)
    assert known.unrecorded == []
    assert known.made["second"].command == "WORD=word python -m experiments.second '{work}'"
    assert sorted(known.made["first"].inputs) == ["code experiments", "code quantenv", "data value.txt", "options"]
    assert known.files == {name: file_hash(made / name) for name in ("out/first.json", "out/second.txt")}


@pytest.mark.parametrize(
    ("change", "sentences", "remade"),
    [
        (
            lambda root: (root / "quantenv/numbers.py").write_text("FACTOR = 3"),
            ["first is stale: code quantenv moved.", "second is stale: out/first.json is stale."],
            ["first", "second"],
        ),
        (
            lambda root: (root / "quantenv/numbers.py").write_text("FACTOR = 1 + 1"),  # the same number comes out
            ["first is stale: code quantenv moved.", "second is stale: out/first.json is stale."],
            ["first"],
        ),
        (
            lambda root: (root.parent / "data" / "value.txt").write_text("5"),
            ["first is stale: data value.txt moved.", "second is stale: out/first.json is stale."],
            ["first", "second"],
        ),
        (
            lambda root: (root / "out/second.txt").write_text("43"),
            ["second is stale: out/second.txt is not as it was made."],
            ["second"],
        ),
        (
            lambda root: (root / "out/second.txt").unlink(),
            ["second is stale: out/second.txt is missing."],
            ["second"],
        ),
    ],
)
def test_what_moved_is_said_and_what_depends_on_it_is_made_again(made, change, sentences, remade, capsys):
    change(made)
    assert check(made, capsys) == (1, sentences)
    assert main([], made, MADE) == 0
    assert runs(made) == remade
    assert check(made, capsys) == (0, [])


def test_prose_makes_nothing_stale(made, capsys):
    (made / "quantenv/numbers.py").write_text('"""Of numbers."""\n\nFACTOR = 2  # two\n')
    (made / "experiments/part.py").write_text("pass")
    assert check(made, capsys) == (0, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"variables": {"WORD": "other"}},
        {"arguments": ("-m", "experiments.second", "{work}", "--more")},
        {"agents": ("ppo",), "modules": ()},
    ],
)
def test_other_options_make_stale(made, changes, capsys):
    fields = {name: getattr(TABLE[1], name) for name in TABLE[1].__dataclass_fields__}
    code, lines = check(made, capsys, (TABLE[0], Recorded(**{**fields, **changes})))
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(
        "second is stale: code experiments moved" if "agents" in changes else "second is stale: o"
    )


def test_options_in_yaml_are_options(made, capsys):
    (made / "experiments" / "configs").mkdir()
    (made / "experiments" / "configs" / "own.yaml").write_text("a: 1")
    fields = {name: getattr(TABLE[0], name) for name in TABLE[0].__dataclass_fields__}
    table = (Recorded(**{**fields, "configs": ("own.yaml",)}),)
    assert check(made, capsys, table) == (1, ["first is stale: options moved."])
    assert main([], made, table) == 0
    (made / "experiments" / "configs" / "own.yaml").write_text("# one\na: 1")
    assert check(made, capsys, table) == (0, [])
    (made / "experiments" / "configs" / "own.yaml").write_text("a: 2")
    assert check(made, capsys, table) == (1, ["first is stale: options moved."])


def test_without_the_data_results_are_checked_and_not_made(made, capsys, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE)
    assert check(made, capsys) == (0, [])
    (made / "quantenv/numbers.py").write_text("FACTOR = 3")
    assert check(made, capsys)[0] == 1
    assert main([], made, MADE) == 1
    said = capsys.readouterr().err
    assert f"first is left out: ${DATA_VARIABLE} is not set, and it needs value.txt of it." in said
    assert "second is left out: out/first.json is stale and could not be made." in said
    assert runs(made) == []
    monkeypatch.setenv(DATA_VARIABLE, str(made))
    assert main([], made, MADE) == 1
    assert f"first is left out: ${DATA_VARIABLE} has no value.txt." in capsys.readouterr().err


def test_what_an_extra_is_missing_for_is_left_out_and_the_rest_is_made(root, capsys):
    assert main([], root, TABLE) == 1
    said = capsys.readouterr().err
    assert "third is left out: no_such_module is not installed" in said
    assert said.splitlines()[-1] == "Left out: third."
    assert check(root, capsys, TABLE) == (1, ["third is stale: out/third is missing."])


def test_a_command_that_dies_is_left_out_and_goes_on_next_time(root, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", "child")
    assert main([], root, MADE) == 1
    assert f"second is left out: its command ended with exit code {-signal.SIGKILL}." in capsys.readouterr().err
    assert check(root, capsys) == (1, ["second is stale: out/second.txt is missing."])
    assert main([], root, MADE) == 0
    assert (root / "out" / "second.txt").read_text() == "42 True word"
    assert runs(root) == ["first", "second", "second"]


def test_a_command_that_makes_nothing_has_failed(root, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", "nothing")
    assert main([], root, MADE) == 1
    assert re.search(r"its command left no file runs/results/second-\w+/ma\*/second.txt", capsys.readouterr().err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_killed_in_between_it_goes_on_with_the_first_that_is_not_fresh(root, number, code, monkeypatch, capsys):
    program = """
import sys
from pathlib import Path
from experiments.studies import record as results
from tests.experiments.small_results import MADE
ours, root = results.main, Path(sys.argv.pop())
results.main = lambda arguments: ours(arguments, root, MADE)
sys.exit(results._main())
"""
    variables = {**os.environ, "FAIL": "parent", "SIGNAL": str(int(number)), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program, str(root)], env=variables, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert runs(root) == ["first", "second"]
    child = Path("/proc") / (root / "child").read_text()
    while child.exists() and ") Z " not in (child / "stat").read_text():  # the command ends with what gave it
        time.sleep(0.01)
    assert check(root, capsys) == (1, ["second is stale: out/second.txt is missing."])
    assert main([], root, MADE) == 0
    assert runs(root) == ["second"]
    assert (root / "out" / "second.txt").read_text() == "42 True word"


def test_some_can_be_made_alone_and_again(made, capsys):
    (made / "quantenv/numbers.py").write_text("FACTOR = 3")
    assert main(["--only=second"], made, MADE) == 0  # fresh, of what it reads as it is
    assert runs(made) == []
    assert main(["--only=second", "--again"], made, MADE) == 0
    (made / "experiments" / "second.py").write_text((made / "experiments" / "second.py").read_text() + "MORE = 1\n")
    assert main(["--only=second"], made, MADE) == 0
    assert runs(made) == ["second", "second"]
    assert [line.split()[0] for line in check(made, capsys)[1]] == ["first", "second"]
    assert main([], made, MADE) == 0
    assert runs(made) == ["first", "second"]
    assert main(["--only=part"], made, TABLE) == 0
    assert json.loads((made / "out" / "parts.json").read_text()) == {"a": 1, "b": 1}
    with pytest.raises(QuantenvError, match="Did you mean 'second'"):
        main(["--only=secand"], made, MADE)


def test_files_of_several_commands_begin_anew_if_nothing_in_them_is_fresh(root, capsys, monkeypatch):
    parts = root / "out" / "parts.json"
    parts.parent.mkdir()
    parts.write_text('{"old": 1}')
    assert main([], root, TABLE[3:]) == 0
    assert json.loads(parts.read_text()) == {"a": 1, "b": 1}
    assert check(root, capsys, TABLE[3:]) == (0, [])
    assert main(["--only=part a", "--again"], root, TABLE[3:]) == 0
    assert json.loads(parts.read_text()) == {"a": 1, "b": 1}
    parts.write_text('{"old": 1}')
    (root / "experiments" / "part.py").write_text("import sys\nsys.exit(3)")
    assert main([], root, TABLE[3:]) == 1
    assert parts.read_text() == '{"old": 1}'  # it failed: they are there again


def test_inputs_that_moved_without_moving_a_number_can_be_kept_with_a_reason(made, capsys):
    (made / "quantenv/numbers.py").write_text("FACTOR = 1 + 1")
    assert main(["--keep=first", "--because=One and one are two."], made, MADE) == 0
    assert check(made, capsys) == (0, [])
    assert runs(made) == []
    (reason,) = read_inputs(made / INPUTS, MADE).made["first"].kept
    assert reason.endswith(": One and one are two.")
    (made / "out/first.json").write_text("43")
    with pytest.raises(QuantenvError, match="are not as they were made"):
        main(["--keep=first", "--because=Because."], made, MADE)
    with pytest.raises(QuantenvError, match="is not known: make it"):
        main(["--keep=part a", "--because=Because."], made, TABLE)
    with pytest.raises(QuantenvError, match="belong together"):
        main(["--keep=first"], made, MADE)


def test_files_that_are_called_by_their_content_are_found(root, capsys):
    (root / "experiments" / "named.py").write_text(
        "from pathlib import Path\nfor old in Path('out').glob('named-*'): old.unlink()\nPath('out/named-1').touch()"
    )
    (root / "out").mkdir()
    (root / "out" / "named-0").touch()
    table = (Recorded("named", ("out/named-*",), ("-m", "experiments.named"), ("experiments.named",), 0.1),)
    assert main([], root, table) == 0
    assert check(root, capsys, table) == (0, [])
    (root / "out" / "named-2").touch()
    assert check(root, capsys, table) == (1, ["named is stale: out/named-* is missing."])


def test_what_was_made_from_is_not_known_at_first(root, capsys):
    (root / "out").mkdir()
    for recorded in MADE:
        (root / recorded.files[0]).write_text("42")
    assert check(root, capsys)[1] == [
        f"{name} is stale: what it was made from is not known." for name in ("first", "second")
    ]
    with pytest.raises(QuantenvError, match="--again needs --only"):
        main(["--again"], root, MADE)


def test_all_are_listed(made, capsys):
    capsys.readouterr()
    assert main(["--list"], made, TABLE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TABLE)
    assert lines[0].endswith("first: python -m experiments.first")


def test_of_a_table_only_its_numbers_count(tmp_path):
    table = synthetic_table()
    table.save(tmp_path / "a.npz")
    synthetic_table(provenance={"date": "another"}, evaluator_identity="another").save(tmp_path / "b.npz")
    loss = table.loss["test"].copy()
    loss[5] = np.round(loss[5] + 1e-6, 6)
    synthetic_table(loss={**table.loss, "test": loss}).save(tmp_path / "c.npz")
    a, b, c = (numbers_hash(tmp_path / f"{name}.npz") for name in "abc")
    assert a == b != c
    assert numbers_hash(tmp_path / "d.npz") is None


def test_of_tensors_only_their_numbers_count(tmp_path):
    import torch

    from quantenv.core.tensor_file import write_tensors

    for name, about, value in (("a", 1, 0.5), ("b", 2, 0.5), ("c", 1, 0.25)):
        write_tensors(tmp_path / f"{name}.safetensors", "test-1", {"about": about}, {"x": torch.tensor([value])})
    a, b, c = (numbers_hash(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a == b != c


# In the repository -----------------------------------------------------------------------------------------

SOURCES = SourceTree(ROOT)
BY_NAME = {recorded.name: recorded for recorded in RECORDED}
#: Results whose commands have no options of ours.
SHIPPING = ("images of digits", "weights of digits", "weights of resnet20", "prepared networks")


def test_every_recorded_file_is_fresh_or_listed_as_of_unknown_inputs():
    """Make stale ones anew: make results."""
    data = os.environ.get(DATA_VARIABLE)
    known = read_inputs(ROOT / INPUTS, RECORDED)
    reasons = stale(Place(ROOT, SOURCES, Path(data) if data else None), RECORDED, known)
    unknown = {name for recorded in RECORDED if recorded.name in known.unrecorded for name in recorded.files}
    assert {
        name: why
        for name, why in reasons.items()
        if name not in known.unrecorded and not all(any(file in each for file in unknown) for each in why)
    } == {}
    assert {*known.unrecorded, *known.made} <= BY_NAME.keys()


def test_every_recorded_file_belongs_to_a_result():
    expected = {INPUTS}
    expected |= {str(located(ROOT, name).relative_to(ROOT)) for recorded in RECORDED for name in recorded.files}
    found = set()
    for folder in (
        "experiments/studies/results",
        "quantenv/evaluation/table/data",
        "quantenv/tasks/data",
        "quantenv/tasks/weights",
        "quantenv/tasks/prepared",
    ):
        for path in (ROOT / folder).iterdir():
            if path.is_file() and path.suffix != ".py":
                found.add(f"{folder}/{path.name}")
    assert found == expected


def test_what_a_result_reads_is_recorded_and_made_before_it():
    made = set()
    for recorded in RECORDED:
        assert set(recorded.reads) <= made, recorded.name
        made |= set(recorded.files)
        assert set(recorded.copies.values()) <= set(recorded.files)
        assert SOURCES.file(recorded.arguments[1]) is not None
        assert set(recorded.agents) <= BUILT_IN.keys()
        for name in recorded.configs:
            assert (ROOT / "experiments" / "configs" / name).is_file()


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in SHIPPING])
def test_every_command_is_understood(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, module, *arguments = BY_NAME[name].arguments
    given = [each.replace("{work}", str(tmp_path)).replace("{data}", str(tmp_path)) for each in arguments]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*given, "--print_config"])
    assert not ended.value.code
    assert capsys.readouterr().out


def test_modules_are_named_as_they_are():
    from experiments.studies import bench

    for name in (*CARRIERS, *NETWORKS, *(root for recorded in RECORDED for root in recorded.roots)):
        assert SOURCES.file(name) is not None, name
    assert [(name, module) for name, (module, *_) in PARTS.items()] == [
        (name, name_of(part)) for name, part in bench.PARTS.items()
    ]


def name_of(part):
    """Returns the module that a part of the benchmark calls."""
    return part.claims.__closure__[0].cell_contents


def test_the_folder_of_data_is_called_as_the_task_calls_it():
    from quantenv.tasks import resnet20

    assert (DATA_VARIABLE, IMAGES) == (resnet20.DATA_VARIABLE, (resnet20.IMAGES,))


@pytest.mark.parametrize(
    ("module", "moves", "leaves"),
    [
        (
            "quantenv.quantization.formats",
            [
                "table of digits",
                "table of resnet20",
                "bench_correction",
                "bench_sensitivity",
                "bench_cifar10",
                "bench_qat",
            ],
            ["benchmark", "regret", "bench_pareto", "bench store"],
        ),
        ("quantenv.training.finetuning", ["bench_fidelity digits", "bench_cifar10"], ["table of digits", "benchmark"]),
        ("quantenv.envs.masks", ["benchmark", "regret", "bench table_env"], ["table of digits"]),
        (
            "agents.rl.ppo",
            ["benchmark", "regret", "bench_pareto", "bench_transfer"],
            ["bench_correction", "bench store"],
        ),
        ("agents.search.gp", ["benchmark"], ["regret", "bench_pareto"]),
        ("agents.search.knapsack", ["benchmark", "bench_correction", "allocation for bench_cifar10"], ["regret"]),
        ("quantenv.hardware.costs", ["benchmark", "bench_pareto", "bench_fidelity digits"], ["bench_qat"]),
        ("quantenv.sensitivity.divergence", ["bench_sensitivity", "bench_channel_groups"], ["bench_fidelity digits"]),
        ("experiments.leaderboard.scores", ["benchmark", "regret"], ["bench_transfer"]),
        ("experiments.reports.charts", [], list(BY_NAME)),
        ("experiments.runs.progress", [], list(BY_NAME)),
        ("quantenv.core.errors", [], list(BY_NAME)),
    ],
)
def test_code_makes_stale_what_it_computes(module, moves, leaves):
    for names, behind in ((moves, True), (leaves, False)):
        for name in names:
            assert (module in modules_of(name)) == behind, name


@functools.cache
def modules_of(name):
    return SOURCES.behind(BY_NAME[name].roots, BY_NAME[name].left_out)


def test_results_over_tables_depend_on_their_rows():
    for name in ("benchmark", "regret", "bench_pareto", "bench_transfer"):
        assert set(BY_NAME[name].reads) == {
            "quantenv/evaluation/table/data/digits.npz",
            "quantenv/evaluation/table/data/resnet20.npz",
        }
