"""`quantenv validate` on a benchmark finds what was changed."""

import pyarrow
import pyarrow.parquet
import pytest

from experiments.cli.main import main
from experiments.leaderboard.parquet import write_checksum
from tests.resealing import change_json


def change(folder, row, **values):
    """Changes a row of the Parquet file."""
    path = folder / "evaluations.parquet"
    rows = pyarrow.parquet.read_table(path)
    content = rows.to_pylist()
    content[row] |= values
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content, schema=rows.schema), path)
    write_checksum(path)


def validate(folder, *arguments):
    return main(["validate", str(folder), *arguments])


def test_a_sound_benchmark_agrees_to_the_bit(benchmark, in_process, capsys):
    assert validate(benchmark) == 0
    assert "4 rows, 144 evaluations, 4 searches repeated: everything agrees" in capsys.readouterr().out
    assert validate(benchmark, "--all") == 0
    assert "12 searches repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("correct", 199, "evaluation 8: correct was recorded as 199"),
        ("loss", 0.125, "evaluation 8: loss was recorded as 0.125"),
        ("cost", 1.0, "evaluation 8: cost was recorded as 1.0"),
        ("feasible", False, "evaluation 8: feasible was recorded as False and is True"),
        ("reward", 3.0, "from evaluation 8 of 12 on: reward was recorded as 3.0"),
        ("regret", 3.0, "from evaluation 8 of 12 on: regret was recorded as 3.0"),
    ],
)
def test_a_tampered_evaluation_is_found(benchmark_copy, in_process, capsys, column, value, expected):
    change(benchmark_copy, 19, **{column: value})
    assert validate(benchmark_copy, "--all") == 1
    assert expected in capsys.readouterr().out


def test_an_invented_evaluation_of_a_real_allocation_is_found(benchmark_copy, in_process, capsys):
    """All of the row is as the table says; only the search never went there."""
    rows = pyarrow.parquet.read_table(benchmark_copy / "evaluations.parquet").to_pylist()
    names = ("bits", "correct", "loss", "cost", "regret", "reward")
    other = next(row for row in rows if row["bits"] != rows[19]["bits"] and row["budget"] == rows[19]["budget"])
    change(benchmark_copy, 19, **{name: other[name] for name in names})
    assert validate(benchmark_copy, "--all") == 1
    out = capsys.readouterr().out
    assert "repeats differently from evaluation 8 of 12 on: bits was recorded as" in out
    assert "evaluation 8: correct" not in out


def test_a_tampered_leaderboard_is_found(benchmark_copy, in_process, capsys):
    def tamper(content):
        content["rows"][1]["regret"]["12"]["value"] = 0.0625
        content["overall"][0]["reached"]["optimum"] = 77

    change_json(benchmark_copy / "leaderboard.json", tamper)
    assert validate(benchmark_copy) == 1
    out = capsys.readouterr().out
    assert "leaderboard.json, rows, " in out
    assert "0.0625" in out
    assert "leaderboard.json, overall, " in out
    assert "2 differences" in out


def test_a_tampered_text_or_curve_is_found(benchmark_copy, in_process, capsys):
    text = benchmark_copy / "leaderboard.md"
    text.write_text(text.read_text().replace("| 1 | ", "| 1 | best ", 1))

    def tamper(content):
        content["curves"][0]["regret"]["value"][-1] = 0.03125

    change_json(benchmark_copy / "curves.json", tamper)
    assert validate(benchmark_copy) == 1
    out = capsys.readouterr().out
    assert "leaderboard.md: not the leaderboard of leaderboard.json" in out
    assert "curves.json: the curves do not follow" in out


def test_a_text_that_is_no_text_is_found(benchmark_copy, in_process, capsys):
    (benchmark_copy / "leaderboard.md").write_bytes(b"\xff\xfe")
    assert validate(benchmark_copy) == 1
    assert "leaderboard.md: not the leaderboard of leaderboard.json" in capsys.readouterr().out


def test_changed_options_are_found(benchmark_copy, in_process, capsys):
    def tamper(content):
        for job in content["jobs"]:
            job.update(config={"made": "up"}, evaluator_identity="0" * 16)

    change_json(benchmark_copy / "jobs.json", tamper)
    assert validate(benchmark_copy) == 1
    out = capsys.readouterr().out
    assert "options were recorded as {'made': 'up'}" in out
    assert "what evaluates is not what was recorded" in out


FILES = ("suite.yaml", "jobs.json", "evaluations.parquet", "leaderboard.json", "curves.json", "environment.json")


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("parquet")])
def test_a_changed_digit_is_refused(benchmark_copy, refused, name):
    text = (benchmark_copy / name).read_text()
    digit = next(place for place in range(len(text) // 2, len(text)) if text[place].isdigit())
    (benchmark_copy / name).write_text(text[:digit] + str(9 - int(text[digit])) + text[digit + 1 :])
    assert name in refused("validate", str(benchmark_copy))


JOB = {
    "seed": (1.5, "is 1.5; expected a whole number"),
    "budget": (None, "is null; expected a number"),
    "task": (["digits"], "expected text"),
    "environment_seconds": (-1, "of at least 0"),
    "agent_options": ("x", "expected names with values"),
    "surplus": (1, "unknown key"),
}


@pytest.mark.parametrize("name", JOB)
def test_a_description_is_held_to_its_schema(benchmark_copy, refused, name):
    value, said = JOB[name]
    change_json(benchmark_copy / "jobs.json", lambda content: content["jobs"][2].update({name: value}))
    for command in ("validate", "report"):
        sentence = refused(command, str(benchmark_copy))
        assert f"jobs[2].{name}" in sentence
        assert said in sentence


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(benchmark_copy, refused, name):
    path = benchmark_copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3].rstrip() + b"\n\0\n")
    assert name in refused("validate", str(benchmark_copy))


def test_an_unfinished_benchmark_is_refused(benchmark_copy, refused):
    (benchmark_copy / "leaderboard.json").unlink()
    assert "no finished benchmark: leaderboard.json is missing" in refused("validate", str(benchmark_copy))
