import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import quantenv
from experiments.runs.episodes import read_episodes
from experiments.runs.folder_lock import sole_writer
from experiments.runs.run_folder import RunFolder
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.table.shipped import get_table
from quantenv.tasks import task_from_datasets
from tests.digits import FEW_DIGITS

#: As `SHORT` of the command line.
SHORT = {"evaluations": 40, "qat": {"epochs": 1}, "agent_options": {"hidden": 16, "layers": 1}, "top_k": 3}


@pytest.fixture(scope="module")
def task():
    """A task of the user's: a linear problem, and a network that solves it."""
    torch.manual_seed(0)
    inputs, layer = torch.randn(300, 12), torch.nn.Linear(12, 3)
    labels = layer(inputs).argmax(1)
    network = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Linear(3, 3))
    with torch.no_grad():
        network[2].weight.copy_(torch.eye(3))
        network[2].bias.zero_()
    splits = TensorDataset(inputs[:200], labels[:200]), TensorDataset(inputs[200:], labels[200:])
    return task_from_datasets(network, *splits, name="mine")


SMALL = {"agent": "random", "evaluations": 12, "qat": {"epochs": 1, "batch_size": 32}, "budget": 0.6}


def test_importing_quantenv_loads_neither_torch_nor_what_stands_above_it():
    program = "import sys, quantenv; dir(quantenv); assert not {'torch', 'experiments', 'agents'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = quantenv.serch
    assert {"search", "resume", "SearchResult"} <= set(dir(quantenv))


def test_a_search_is_what_the_command_does(finished, tmp_path):
    seen = []
    kept = quantenv.search(FEW_DIGITS, runs=tmp_path, on_episode=seen.append, **SHORT)
    for name in ("episodes.jsonl", "top_k.json", "best.json", "report.json", "report.md"):
        assert (kept.folder.path / name).read_bytes() == (finished / name).read_bytes()
    assert list(kept.episodes) == seen == read_episodes(finished / "episodes.jsonl")[0]
    unkept = quantenv.search(FEW_DIGITS, **SHORT)
    assert unkept.folder is None
    assert unkept.episodes == kept.episodes
    assert unkept.best == kept.best == Allocation.load(finished / "best.json")
    assert unkept.report.rows == kept.report.rows
    tuned = unkept.finetune()
    assert tuned.test == kept.report.row("found", "QAT").evaluation
    assert str(kept.report) in (finished / "report.md").read_text()


def test_threads_are_given_back():
    before = torch.get_num_threads()
    quantenv.search("digits_table", agent="random", evaluations=2, threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_task_of_one_s_own_is_searched_kept_and_resumed(task, tmp_path):
    whole = quantenv.search(task, runs=tmp_path / "whole", **SMALL)
    assert whole.report.complete
    assert whole.folder.options().task == "mine"
    shorter = quantenv.search(task, runs=tmp_path / "parts", **{**SMALL, "evaluations": 7})
    with sole_writer(shorter.folder.path, "x"), pytest.raises(QuantenvError, match="being written by `x`"):
        quantenv.resume(shorter.folder.path, task)
    longer = quantenv.resume(shorter.folder.path, task, evaluations=12)
    assert longer.episodes == whole.episodes
    assert longer.report == whole.report
    assert RunFolder(shorter.folder.path).read_report() == whole.report
    with pytest.raises(QuantenvError, match="Unknown task 'mine'"):
        quantenv.resume(shorter.folder.path)


def test_another_task_does_not_continue_a_run(task, tmp_path):
    folder = quantenv.search(task, runs=tmp_path, **SMALL).folder.path
    with pytest.raises(QuantenvError):
        quantenv.resume(folder, get_table("digits_table"), evaluations=20)


def test_numpy_s_values_are_taken(task):
    given = {"budget": np.float64(0.6), "bits": np.array([2, 4, 8]), "evaluations": np.int64(12), "seed": np.int32(0)}
    found = quantenv.search(task, **{**SMALL, **given})
    assert {bits for bits, _ in found.best.bits} <= {2, 4, 8}
    same = quantenv.search(task, **{**SMALL, "bits": [2, 4, 8]})
    assert found.episodes == same.episodes


def test_a_table_is_compared_and_has_no_network_to_fine_tune():
    found = quantenv.search(get_table("digits_table"), agent="ilp", evaluations=1)
    assert {row.stage for row in found.report.rows} == {"", "post-training"}
    with pytest.raises(QuantenvError, match="search task 'digits' instead"):
        found.finetune()


def test_a_network_no_better_than_chance_is_warned_of(task):
    worse = task_from_datasets(
        torch.nn.Linear(12, 3).requires_grad_(False),
        *(TensorDataset(torch.randn(100, 12), torch.arange(100) % 3) for _ in range(2)),
        name="noise",
    )
    with pytest.warns(UserWarning, match="not beyond doubt better"):
        quantenv.search(worse, agent="random", evaluations=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evalutions": 3}, "Did you mean 'evaluations'"),
        ({"evaluations": "many"}, "expected a whole number"),
        ({"evaluations": 1.5}, "expected a whole number"),
        ({"agent": "reinforc"}, "Did you mean 'reinforce'"),
        ({"budget": -1}, "ratio of the 8-bit cost"),
        ({"seed": -1}, "seed"),
        ({"qat": {"epoch": 1}}, "Did you mean 'qat.epochs'"),
        ({"resume": "x"}, "Unknown option"),
        ({"task": 3}, "not of int"),
        ({"preset": "hak"}, "Did you mean 'haq'"),
        ({"pinned": {"nowhere": 8}}, "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    with pytest.raises(QuantenvError, match=words):
        quantenv.search(**{"task": "digits_table", **options})


def test_options_of_a_task_do_not_go_with_a_whole_one(task):
    for options in ({"scheme": "k-means"}, {"data": "here"}):
        with pytest.raises(QuantenvError, match="given whole"):
            quantenv.search(task, **SMALL, **options)
