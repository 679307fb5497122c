"""The benchmark of fronts on a small table; its figures are those of `quantenv pareto`."""

import json

import pytest

from experiments.cli.main import main
from experiments.studies import bench_pareto
from quantenv.core.errors import QuantenvError
from tests.synthetic_table import synthetic_table


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    synthetic_table(4, bits=(2, 4, 6, 8), samples=300).save(path)
    return path


def test_every_agent_and_seed_is_held_against_the_true_front(file, tmp_path, capsys):
    arguments = [f"--tasks=[{file}]", "--agents=[random,nsga2]", "--evaluations=24", "--seeds=2"]
    assert bench_pareto.main([*arguments, f"--output={tmp_path}"]) == 0
    table = capsys.readouterr().out
    content = json.loads((tmp_path / "bench_pareto.json").read_text())["tasks"][str(file)]
    assert table == (tmp_path / "bench_pareto.md").read_text()
    assert table.count(f"| {file} |") == 4
    assert list(content["agents"]) == ["random", "nsga2"]
    run = ["pareto", f"--task={file}", "--agent=random", "--evaluations=24", "--seed=1", f"--runs={tmp_path}", "--json"]
    assert main(run) == 0
    alone = json.loads(capsys.readouterr().out)
    assert content["agents"]["random"][1] == alone["mean_accuracy"]
    assert content["true"] == alone["true"]["mean_accuracy"]
    assert content["uniform"] == alone["uniform"]["mean_accuracy"]
    assert all(value <= content["true"] for values in content["agents"].values() for value in values)


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match="--seeds is 0"):
        bench_pareto.BenchOptions(seeds=0)
    with pytest.raises(QuantenvError, match="needs at least 18"):
        bench_pareto.BenchOptions(evaluations=10)
    with pytest.raises(QuantenvError, match="searches under one budget"):
        bench_pareto.BenchOptions(agents=["annealing"])
    options = ["--tasks=[digits]", "--agents=[random]", "--evaluations=18", "--seeds=1", f"--output={tmp_path}"]
    with pytest.raises(QuantenvError, match="true front of task 'digits' is not known"):
        bench_pareto.main(options)
