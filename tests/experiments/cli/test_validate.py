import pytest

from experiments.cli.main import main
from quantenv.core.allocation import Allocation
from quantenv.tasks import get_task
from tests.digits import FEW_DIGITS
from tests.resealing import change_json, change_lines


def change_episode(folder, number, **changes):
    change_lines(folder / "episodes.jsonl", lambda line, content: content.update(changes if line == number else {}))


def test_a_sound_run_agrees_to_the_last_digit(finished, capsys):
    assert main(["validate", str(finished), "--all", "--qat"]) == 0
    assert "40 of 40 recorded evaluations" in capsys.readouterr().out


def test_a_sample_is_smaller(finished, capsys):
    assert main(["validate", str(finished), "--sample=1"]) == 0
    assert int(capsys.readouterr().out.split(" of 40")[0].split()[-1]) <= 4  # the best three, and one


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"correct": 3}, "evaluation 7: result"),
        ({"loss": 0.125}, "evaluation 7: result"),
        (
            {"costs": {"size": 1.0, "bops": 1.0, "latency": 1.0, "energy": 1.0, "memory": 1.0}},
            "evaluation 7: size was recorded as 1.0",
        ),
        ({"feasible": False}, "evaluation 7: feasible was recorded as False and is True"),
    ],
)
def test_a_changed_episode_is_listed(run_copy, capsys, changes, expected):
    change_episode(run_copy, 7, **changes)
    assert main(["validate", str(run_copy), "--all"]) == 1
    assert expected in capsys.readouterr().out


def test_a_changed_report_is_listed(run_copy, capsys):
    def change(report):
        report["rows"][0]["correct"] -= 1
        report["rows"][4]["loss"] += 1e-12
        report["rows"][5]["correct"] -= 1

    change_json(run_copy / "report.json", change)
    assert main(["validate", str(run_copy)]) == 1
    text = capsys.readouterr().out
    assert "report, float: result" in text
    assert "report, found post-training: result" in text
    assert "QAT" not in text
    assert main(["validate", str(run_copy), "--qat"]) == 1
    assert "report, found QAT: result" in capsys.readouterr().out


def test_a_wrong_best_allocation_is_listed(run_copy, capsys):
    Allocation.make(get_task(FEW_DIGITS).layers, 2, task=FEW_DIGITS).save(run_copy / "best.json")
    change_json(run_copy / "top_k.json", lambda content: content["entries"].pop())
    assert main(["validate", str(run_copy)]) == 1
    text = capsys.readouterr().out
    assert "best.json: bits" in text
    assert "top_k.json: not the best 3" in text


FILES = ("config.yaml", "environment.json", "episodes.jsonl", "report.json", "best.json", "top_k.json")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_digit_is_refused(run_copy, refused, name):
    text = (run_copy / name).read_text()
    digit = next(place for place in range(len(text) // 2, len(text)) if text[place].isdigit())
    (run_copy / name).write_text(text[:digit] + str(9 - int(text[digit])) + text[digit + 1 :])
    assert name in refused("validate", str(run_copy))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(run_copy, refused, name):
    content = (run_copy / name).read_bytes()
    (run_copy / name).write_bytes(content[: len(content) // 3].rstrip() + b"\n\0\n")
    assert name in refused("validate", str(run_copy))


@pytest.mark.parametrize("command", ["validate", "report"])
def test_a_run_that_lost_its_last_episodes_is_refused(run_copy, refused, command):
    path = run_copy / "episodes.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    assert "holds 37 evaluations, and report.json counts 40" in refused(command, str(run_copy))


def test_a_run_without_episodes_is_refused(run_copy, refused):
    (run_copy / "episodes.jsonl").write_bytes(b"")
    (run_copy / "report.json").unlink()
    assert "nothing to validate" in refused("validate", str(run_copy))
