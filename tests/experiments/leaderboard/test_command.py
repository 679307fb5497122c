"""`quantenv benchmark`: what it writes, continuing, and that nothing depends on how it was run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from experiments.cli import benchmark as command
from experiments.cli.main import main
from experiments.leaderboard.folder import COLUMNS
from experiments.leaderboard.jobs import parse_bits
from experiments.leaderboard.parquet import checksum_of, write_checksum
from experiments.leaderboard.workers import attempt
from experiments.options.signals import Interrupted
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.table.optimum import optimum, standard_error
from tests.experiments.leaderboard.conftest import AGENTS, ARGUMENTS, TABLE, repeatable, run_benchmark, serial

ROOT = Path(__file__).parents[3]


def test_every_evaluation_is_in_one_parquet_file(benchmark):
    table = pyarrow.parquet.read_table(benchmark / "evaluations.parquet")
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == len(AGENTS) * 2 * 3 * 12
    env = {budget: QuantizationEnv(TABLE, budget=budget) for budget in (0.5, 0.7)}
    best = {b: optimum(TABLE, e.budgets, e.tables).best.evaluation for b, e in env.items()}
    for row in table.to_pylist()[::7]:
        weights, activations = parse_bits(row["bits"])
        allocation = Allocation.make(TABLE.layers, weights, activations)
        evaluation = TABLE.evaluation(TABLE.index(allocation))
        assert (row["correct"], row["samples"], row["loss"]) == (evaluation.correct, 200, evaluation.loss)
        assert row["cost"] == pytest.approx(env[row["budget"]].tables["size"].cost(weights, activations))
        assert row["feasible"]  # by the mask
        assert row["cost"] <= env[row["budget"]].limits[0]
        assert row["regret"] == pytest.approx(best[row["budget"]].accuracy - evaluation.accuracy, abs=1e-12)
        assert row["sampling_error"] == standard_error(best[row["budget"]])
    assert sorted(set(table["seed"].to_pylist())) == [0, 1, 2]
    assert table["evaluation"].to_pylist()[:13] == [*range(1, 13), 1]


def test_every_search_is_described(benchmark):
    jobs = json.loads((benchmark / "jobs.json").read_text())["jobs"]
    assert len(jobs) == len(AGENTS) * 2 * 3
    for job in jobs:
        assert job["environment_seconds"] > 0
        assert job["agent_seconds"] > 0
        assert job["agent"] == "random" or job["config"]["hidden"] == 8
    packages = json.loads((benchmark / "environment.json").read_text())["packages"]
    assert packages["numpy"] == np.__version__
    assert yaml.safe_load((benchmark / "suite.yaml").read_text())["evaluations"] == 12


def test_the_suite_runs_again_from_its_file_with_nothing_left_to_do(benchmark_copy, in_process, capsys):
    before = repeatable(benchmark_copy)
    times = {path: path.stat().st_mtime_ns for path in (benchmark_copy / "parts").iterdir()}
    assert main(["benchmark", f"--config={benchmark_copy / 'suite.yaml'}", f"--output={benchmark_copy}"]) == 0
    assert "12 searches, 12 of them done before" in " ".join(capsys.readouterr().err.split())
    assert repeatable(benchmark_copy) == before
    assert {path: path.stat().st_mtime_ns for path in (benchmark_copy / "parts").iterdir()} == times


def test_two_workers_find_what_one_process_does(benchmark, table_file, tmp_path):
    two = run_benchmark(table_file, tmp_path / "two", "--workers=2")
    assert repeatable(two) == repeatable(benchmark)


def test_the_order_of_the_searches_does_not_matter(benchmark, table_file, tmp_path, monkeypatch):
    def backwards(jobs, workers, pool, stop, store=None):
        yield from serial(jobs[::-1], workers, pool, stop, store)

    monkeypatch.setattr(command, "run_all", backwards)
    assert repeatable(run_benchmark(table_file, tmp_path / "backwards")) == repeatable(benchmark)


def test_ray_finds_what_processes_do(benchmark, table_file, tmp_path):
    assert repeatable(run_benchmark(table_file, tmp_path / "ray", "--pool=ray", "--workers=1")) == repeatable(benchmark)


def descendants(parent: int) -> set[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, new = set(), {parent}
    while new:
        new = {child for child, of in pairs if of in new}
        found |= new
    return found


def test_a_killed_benchmark_continues_and_leaves_no_process(benchmark, table_file, tmp_path, in_process, capsys):
    output = tmp_path / "killed"
    arguments = ["benchmark", f"--tasks=[{table_file}]", *ARGUMENTS, f"--output={output}", "--workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.main", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not len(list(output.glob("parts/*.sha256"))) >= 2:
        assert process.poll() is None
        time.sleep(0.02)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(output.glob("parts/*.sha256")))
    assert not (output / "leaderboard.json").exists()
    for _ in range(500):
        alive = {pid for pid in workers if Path(f"/proc/{pid}").exists() or _answers(pid)}
        if not alive:
            break
        time.sleep(0.02)
    assert not alive
    capsys.readouterr()
    run_benchmark(table_file, output)
    assert f"12 searches, {done} of them done before" in " ".join(capsys.readouterr().err.split())
    assert repeatable(output) == repeatable(benchmark)


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_ends_it_with_what_was_found(table_file, tmp_path, monkeypatch, capsys):
    def stopped(jobs, workers, pool, stop, store=None):
        yield jobs[0], attempt(jobs[0], store)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(command, "run_all", stopped)
    arguments = ["benchmark", f"--tasks=[{table_file}]", *ARGUMENTS, f"--output={tmp_path}"]
    assert main(arguments) == 143
    assert "The same command continues" in capsys.readouterr().err
    assert len(list(tmp_path.glob("parts/*.parquet"))) == 1


def test_sigterm_to_all_processes_is_an_interruption(table_file, tmp_path):
    arguments = ["benchmark", f"--tasks=[{table_file}]", *ARGUMENTS, f"--output={tmp_path}", "--workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.main", *arguments, "--seeds=50"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.glob("parts/*.sha256")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do
    _, error = process.communicate()
    assert process.returncode == 143
    assert "The same command continues" in error
    assert "Traceback" not in error


def test_only_what_changed_is_run_again(benchmark_copy, table_file, in_process, capsys):
    options = '--agent_options={"reinforce": {"hidden": 4, "layers": 1}}'
    run_benchmark(table_file, benchmark_copy, options, "--seeds=4")
    said = " ".join(capsys.readouterr().err.split())
    assert "6 of the searches" in said  # reinforce's, but for the new seed
    assert "16 searches, 6 of them done before" in said
    jobs = json.loads((benchmark_copy / "jobs.json").read_text())["jobs"]
    assert {job["config"].get("hidden") for job in jobs} == {None, 4}


def test_other_code_is_noticed(benchmark_copy, table_file, in_process, capsys, monkeypatch):
    monkeypatch.setattr(command, "job_key", lambda job, task, versions: f"other {job.agent}")
    run_benchmark(table_file, benchmark_copy)
    assert "12 of the searches" in " ".join(capsys.readouterr().err.split())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def resign(part):
    """Damage that the checksum was written after."""
    part.write_bytes(part.read_bytes()[:-100])
    write_checksum(part)


def of_another_search(part):
    other = next(path for path in part.parent.glob("*.parquet") if path != part)
    part.write_bytes(other.read_bytes())
    write_checksum(part)


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: part.write_bytes(part.read_bytes()[:100]),
        lambda part: flip(part, 200),
        lambda part: flip(checksum_of(part), 5),
        lambda part: checksum_of(part).unlink(),
        lambda part: checksum_of(part).write_bytes(b"\xff" * 5000),
        resign,
        of_another_search,
    ],
)
def test_a_damaged_part_is_made_again_and_named(benchmark, benchmark_copy, table_file, in_process, capsys, damage):
    part = sorted((benchmark_copy / "parts").glob("*.parquet"))[0]
    damage(part)
    run_benchmark(table_file, benchmark_copy)
    said = " ".join(capsys.readouterr().err.split())
    assert "12 searches, 11 of them done before" in said
    assert part.name in said
    assert "That search is run again." in said
    assert repeatable(benchmark_copy) == repeatable(benchmark)


@pytest.mark.parametrize("position", range(4, 5000, 499))
@pytest.mark.parametrize("command", ["validate", "report"])
def test_a_flipped_byte_of_the_evaluations_is_refused(benchmark_copy, refused, position, command):
    path = benchmark_copy / "evaluations.parquet"
    flip(path, position % path.stat().st_size)
    assert "evaluations.parquet does not match its checksum" in refused(command, str(benchmark_copy))


def test_sha256sum_knows_the_checksums(benchmark):
    for folder in (benchmark, benchmark / "parts"):
        files = [path.name for path in folder.glob("*.sha256")]
        assert files
        subprocess.run(["sha256sum", "--check", "--strict", *files], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def test_an_agent_that_cannot_search_is_listed_with_its_reason(table_file, tmp_path, in_process, capsys):
    run_benchmark(table_file, tmp_path, "--agents=[random,differentiable]", "--agent_options={}")
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {row["agent"] for row in content["rows"]} == {"random"}
    (refusal,) = content["refused"]
    assert refusal["agent"] == "differentiable"
    assert "needs the network" in refusal["sentence"]
    assert f"Not run: differentiable on {table_file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--agents=[randm]"], "Did you mean 'random'"),
        (["--agents=[random]", "--agent_options={ppo: {}}"], "'ppo'"),
        (["--agents=[reinforce]", "--agent_options={reinforce: {hidden: -1}}"], "hidden must be at least 1"),
        (["--tasks=[digits_tabl]"], "Did you mean 'digits_table'"),
        (["--evaluations=100", "--checkpoints=[1000]"], "--checkpoints ends with 1000"),
        (["--checkpoints=[200,100]"], "ascending"),
        (["--budgets=[]"], "at least one"),
        (["--pool=rai"], "Did you mean 'ray'"),
        (["--device=generik"], "Did you mean 'generic'"),
        (["--seeds=0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, expected, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused("benchmark", *arguments)
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_it_says_what_to_install(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'quantenv[benchmark]'" in refused("benchmark", f"--output={tmp_path}")


@pytest.mark.parametrize(
    ("arguments", "name", "evaluations"),
    [
        ([], "default", 1000),
        (["--quick"], "quick", 200),
        (["--quick", "--evaluations=300"], "quick", 300),
        ([f"--config={ROOT / 'experiments/configs/regret.yaml'}"], "regret", 5000),
    ],
)
def test_the_shipped_suites_are_sound(arguments, name, evaluations):
    options = command._options(arguments)
    assert (options.name, options.evaluations) == (name, evaluations)
    assert options.agent_list
