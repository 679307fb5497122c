"""`--init-from`: an agent that was trained on one task continues on another one."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.cli.main import main
from experiments.runs.episodes import read_episodes
from tests.experiments.conftest import run_train
from tests.synthetic_table import synthetic_table

SMALL = "--agent_options.hidden=16"
WARM = {"ddpg": ["--agent_options.warmup_episodes=0", "--agent_options.episodes_per_batch=1"]}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two tasks of other depths, and a third one of other bits."""
    folder = tmp_path_factory.mktemp("tables")
    for name, layers, bits in (("short", 4, (2, 4, 6, 8)), ("long", 6, (2, 4, 6, 8)), ("coarse", 4, (2, 4, 8))):
        synthetic_table(layers, bits=bits, seed=layers).save(folder / f"{name}.npz")
    return folder


@pytest.fixture(scope="module")
def source(tables, tmp_path_factory):
    arguments = ("--agent=reinforce", "--evaluations=160", "--budget=0.5", SMALL)
    return run_train(tmp_path_factory.mktemp("source"), f"--task={tables / 'short.npz'}", *arguments)


def accuracies(folder):
    return np.array([episode.accuracy for episode in read_episodes(folder / "episodes.jsonl")[0]])


def test_a_trained_agent_starts_better_on_another_network(source, tables, tmp_path):
    arguments = [f"--task={tables / 'long.npz'}", "--evaluations=32", "--budget=0.5", SMALL, "--agent=reinforce"]
    scratch = run_train(tmp_path / "scratch", *arguments)
    transferred = run_train(tmp_path / "transferred", *arguments, f"--init_from={source}")
    assert accuracies(transferred)[:16].mean() > accuracies(scratch)[:16].mean()
    assert (transferred / "init.safetensors").read_bytes() == (source / "agent.safetensors").read_bytes()
    assert not (scratch / "init.safetensors").exists()


def test_nothing_learned_is_the_agent_itself(source, tables, tmp_path):
    arguments = [f"--task={tables / 'long.npz'}", "--evaluations=2", "--budget=0.5", SMALL, "--agent=reinforce"]
    run = run_train(tmp_path, *arguments, f"--init_from={source}")  # too few episodes for an update
    one, other = (load_file(folder / "agent.safetensors") for folder in (run, source))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_transferred_run_resumes_without_its_source(source, tables, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(source, gone)
    arguments = [f"--task={tables / 'long.npz'}", "--evaluations=40", "--budget=0.5", SMALL, "--agent=reinforce"]
    run = run_train(tmp_path / "runs", *arguments, f"--init_from={gone}")
    shutil.rmtree(gone)
    expected = (run / "episodes.jsonl").read_bytes()
    (run / "report.json").unlink()
    (run / "episodes.jsonl").write_bytes(b"".join(expected.splitlines(keepends=True)[:25]))
    assert main(["train", f"--resume={run}"]) == 0
    assert (run / "episodes.jsonl").read_bytes() == expected


@pytest.mark.parametrize("agent", ["ddpg", "ppo"])
def test_other_learners_transfer_too(agent, tables, tmp_path):
    arguments = [f"--agent={agent}", "--evaluations=24", "--budget=0.5", SMALL, *WARM.get(agent, [])]
    first = run_train(tmp_path / "first", f"--task={tables / 'short.npz'}", *arguments)
    arguments.append(f"--task={tables / 'long.npz'}")
    second = run_train(tmp_path / "second", *arguments, f"--init_from={first}")
    scratch = run_train(tmp_path / "scratch", *arguments)
    assert (accuracies(second) != accuracies(scratch)).any()


def test_what_cannot_match_says_why(source, tables, tmp_path, refused):
    base = ("train", f"--init_from={source}", f"--runs={tmp_path}", "--evaluations=5", "--agent=reinforce")
    coarse = refused(*base, f"--task={tables / 'coarse.npz'}", SMALL)
    assert "has shape (4,), this agent's has (3,)" in coarse
    assert "--bits (2,4,8 here, 2,4,6,8 there)" in coarse
    long = f"--task={tables / 'long.npz'}"
    assert "--agent_options.hidden (8 here, 16 there)" in refused(*base, long, "--agent_options.hidden=8")
    assert "--observation (haq here, full there)" in refused(*base, long, SMALL, "--observation=haq")
    budgets = refused(*base, long, SMALL, "--metric=size,latency", "--budget=0.8,0.9")
    assert "number of budgets (2 here, 1 there)" in budgets
    assert not list(tmp_path.glob("*"))  # no run folder is left behind


def test_sources_that_have_nothing_to_give(source, tables, tmp_path, refused):
    task = f"--task={tables / 'long.npz'}"
    assert "not of 'ppo'" in refused("train", task, "--agent=ppo", f"--init_from={source}")
    assert "There is no run folder" in refused("train", task, "--init_from=nowhere")
    arguments = ("--evaluations=5", "--budget=0.5", f"--runs={tmp_path}")
    run = run_train(tmp_path, task, "--agent=random", *arguments[:2])
    assert "learns no policy" in refused("train", task, "--agent=random", f"--init_from={run}", *arguments)
    shutil.copytree(source, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "agent.safetensors").unlink()
    sentence = refused("train", task, "--agent=reinforce", f"--init_from={tmp_path / 'unfinished'}", *arguments)
    assert "holds no agent.safetensors" in sentence
