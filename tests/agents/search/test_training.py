"""`quantenv train` with every baseline: counted, recorded and resumed like any other agent."""

import json
import shutil

import pytest

from agents.base import BUILT_IN
from experiments.cli.main import main
from tests.experiments.conftest import run_train
from tests.synthetic_table import synthetic_table

#: All that search tables; the other one needs the network and its gradients.
BASELINES = [
    name for name, target in BUILT_IN.items() if target.startswith("agents.search.") and name != "differentiable"
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    synthetic_table(5, groups=[[0, 3], [1], [2, 4]], bits=(2, 4, 6, 8)).save(path)
    return path


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_is_counted_and_resumes_to_the_byte(name, table, tmp_path):
    run = run_train(tmp_path / "runs", f"--task={table}", f"--agent={name}", "--evaluations=21", "--budget=0.6")
    lines = (run / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["evaluation"] for line in lines] == list(range(1, 22))
    assert all(json.loads(line)["feasible"] for line in lines)
    copy = shutil.copytree(run, tmp_path / "copy")
    for path in copy.iterdir():
        if path.name not in ("config.yaml", "environment.json"):
            path.unlink()
    (copy / "episodes.jsonl").write_bytes(b"".join(lines[:11]))
    assert main(["train", f"--resume={copy}"]) == 0
    agents = [path.name for path in run.glob("agent*")]
    assert agents
    for file in ("episodes.jsonl", "report.json", "best.json", "top_k.json", *agents):
        assert (copy / file).read_bytes() == (run / file).read_bytes()
