import json

import pytest

from experiments.cli.main import main
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.table.optimum import optimum, standard_error
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(5, groups=[[0, 3], [1], [2, 4]])


@pytest.fixture
def file(tmp_path):
    TABLE.save(tmp_path / "table.npz")
    return tmp_path / "table.npz"


def output(capsys, *arguments):
    capsys.readouterr()
    assert main(["optimum", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("split", ["search", "test"])
def test_json(capsys, file, split):
    content = json.loads(output(capsys, f"--task={file}", "--budget=0.6", f"--split={split}", "--json"))
    env = QuantizationEnv(TABLE, budget=0.6)
    expected = optimum(TABLE, env.budgets, env.tables, split)
    assert Allocation.from_dict(content["best"]["allocation"]) == expected.best.allocation
    assert (content["rows"], content["feasible"], content["tied"]) == (27, expected.feasible, expected.tied)
    assert content["budgets"] == {"size": env.budgets[0].limit}
    assert (content["split"], content["table_hash"]) == (split, TABLE.hash)
    assert expected.uniform is not None
    for name, choice in (("best", expected.best), ("uniform", expected.uniform)):
        assert content[name]["row"] == choice.index
        assert content[name]["accuracy"] == choice.evaluation.accuracy
        assert content[name]["standard_error"] == standard_error(choice.evaluation)
        assert content[name]["costs"] == choice.costs


def test_text(capsys, file):
    text = output(capsys, f"--task={file}", "--metric=size,latency", "--budget=0.6,0.8")
    env = QuantizationEnv(TABLE, metric=("size", "latency"), budget=(0.6, 0.8))
    best = optimum(TABLE, env.budgets, env.tables).best.evaluation
    for part in ("layer0 and 1 tied", f"{best.accuracy:.2%} ±", f"{best.correct} of 1000", f"{best.loss:.4f}"):
        assert part in text
    assert "of 27 allocations are feasible" in text


def test_mistakes_are_one_sentence(refused, file):
    assert "Did you mean 'digits_table'" in refused("optimum", "--task=digits_tabel")
    assert "the cheapest cost" in refused("optimum", f"--task={file}", "--budget=0.1")
    assert "Did you mean 'size'" in refused("optimum", f"--task={file}", "--metric=sise")
    assert "Unknown split" in refused("optimum", f"--task={file}", "--split=train")
    assert "missing.npz: No such file" in refused("optimum", "--task=missing.npz")
