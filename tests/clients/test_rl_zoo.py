"""RL Zoo by its command line, which imports the package by `--gym-packages` and takes the plain id."""

import csv
import json
import subprocess
import sys
import zipfile

import pytest
import yaml

from tests.clients.plain import DECISIONS, ID


@pytest.mark.parametrize(("algorithm", "copies"), [("ppo", 4), ("dqn", 1)])
def test_it_trains_and_plays_again(tmp_path, algorithm, copies):
    options = {"policy": "MlpPolicy", "n_timesteps": 400, "policy_kwargs": "dict(net_arch=[16])", "n_envs": copies}
    options |= {"ppo": {"n_steps": 20, "batch_size": 40}, "dqn": {"learning_starts": 50, "buffer_size": 1000}}[
        algorithm
    ]
    (tmp_path / "options.yml").write_text(yaml.safe_dump({ID: options}))
    common = [
        "--algo",
        algorithm,
        "--env",
        ID,
        "--gym-packages",
        "quantenv",
        "-f",
        str(tmp_path / "logs"),
        "--device",
        "cpu",
    ]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "rl_zoo3.train",
            *common,
            "--conf-file",
            str(tmp_path / "options.yml"),
            "--seed",
            "1",
            "--eval-freq",
            "200",
            "--eval-episodes",
            "4",
            "--verbose",
            "0",
            "--no-optim-plots",
        ],
        check=True,
        cwd=tmp_path,
        timeout=300,
    )
    [monitor] = tmp_path.rglob("0.monitor.csv")
    with monitor.open() as file:
        header = json.loads(file.readline().removeprefix("#"))
        episodes = list(csv.DictReader(file))
    assert "DigitsTable" in header["env_id"]
    assert {int(episode["l"]) for episode in episodes} == {DECISIONS}
    assert len(episodes) == 400 // copies // DECISIONS
    [model] = tmp_path.rglob("*DigitsTable-v0.zip")
    assert "policy.pth" in zipfile.ZipFile(model).namelist()
    played = subprocess.run(
        [sys.executable, "-m", "rl_zoo3.enjoy", *common, "--no-render", "--n-timesteps", "80", "--exp-id", "0"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"Episode Length {DECISIONS}" in played.stdout
