"""`--preset haq` and `haq-code`: what they set, and golden trajectories of the whole search."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from agents import make_agent
from agents.rl.ddpg import DDPGConfig
from experiments.cli.main import main
from experiments.options.presets import PRESETS, parse_train_options
from experiments.runs.episodes import read_episodes
from experiments.runs.parts import make_env
from quantenv.envs.haq import HAQEnv, HAQSwitches
from tests.agents.searches import Recorder
from tests.experiments.conftest import run_train
from tests.synthetic import AdditiveEvaluator
from tests.synthetic_table import synthetic_table

GOLDEN = Path(__file__).parents[2] / "data" / "haq_trajectories.json"
EPISODES = 30
MODES = [(preset, metric) for preset in PRESETS for metric in ("size", "latency")]


def trajectory(preset: str, metric: str) -> list[str]:
    """Bits of every episode of a search on the synthetic task: 20 random ones, then learned ones."""
    options = parse_train_options([f"--preset={preset}", f"--metric={metric}"])
    env, bare = make_env(options, None, AdditiveEvaluator())
    assert isinstance(bare, HAQEnv)
    recorder = Recorder(env)
    make_agent(options.agent, recorder, options.seed, options.agent_options).learn(EPISODES, lambda metrics: None)
    return [" ".join(f"{weight}{activation}" for weight, activation in bits) for bits in recorder.bits]


@pytest.mark.parametrize(("preset", "metric"), MODES)
def test_golden_trajectory(preset, metric):
    assert trajectory(preset, metric) == json.loads(GOLDEN.read_text())[f"{preset} {metric}"]


def test_every_switch_and_every_option_of_ddpg_is_named():
    for preset, metric in MODES:
        options = parse_train_options([f"--preset={preset}", f"--metric={metric}"])
        assert options.haq.keys() == {field.name for field in dataclasses.fields(HAQSwitches)}
        assert options.agent_options.keys() == {field.name for field in dataclasses.fields(DDPGConfig)}
        assert options.evaluations == 600


def test_the_paper_is_what_is_default():
    options = parse_train_options(["--preset=haq"])
    assert HAQSwitches.of(options.haq) == HAQSwitches(pins="never")
    assert HAQSwitches.of(parse_train_options(["--preset=haq", "--metric=energy"]).haq) == HAQSwitches()
    assert options.bits == [2, 3, 4, 5, 6, 7, 8]
    code = parse_train_options(["--preset=haq-code"])
    assert (code.bits[0], code.seed, code.agent_options["warmup_episodes"]) == (1, 234, 21)


def test_everything_given_has_the_last_word(tmp_path):
    (tmp_path / "mine.yaml").write_text("budget: 0.7\nseed: 5\n")
    given = ["--metric=latency", "--seed=6", "--agent_options.hidden=16", "--haq.pins=never", "--evaluator=ptq"]
    options = parse_train_options(["--preset=haq", f"--config={tmp_path / 'mine.yaml'}", *given])
    assert (options.budget, options.seed, options.evaluator) == (0.7, 6, "ptq")
    assert (options.agent_options["hidden"], options.agent_options["noise"]) == (16, 0.5)
    assert (options.haq["pins"], options.haq["inverted_flag"]) == ("never", False)
    assert options.decisions == "weights+activations"
    assert parse_train_options([]).haq == {}


def test_every_line_of_the_preset_says_where_it_is_from():
    lines = (Path(__file__).parents[3] / "experiments/configs/haq.yaml").read_text().splitlines()
    code = lines[lines.index("code:") :]
    for line in code:
        name, _, value = line.strip().partition(":")
        if value.strip() and not name.startswith(("#", "<<")):
            assert "#" in line, f"{line}: no comment"


def test_a_run_of_a_preset_ends_resumes_and_repeats(tmp_path):
    synthetic_table(5, bits=(2, 4, 6, 8)).save(tmp_path / "mine.npz")
    quick = ["--scheme=linear", "--evaluator=ptq", "--evaluations=30", "--bits=[2,4,6,8]", "--agent_options.hidden=16"]
    run = run_train(tmp_path / "runs", "--preset=haq-code", f"--task={tmp_path / 'mine.npz'}", *quick)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["preset"], config["haq"]["replay_proposed"]) == ("haq-code", True)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "report.json").unlink()
    lines = (copy / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "episodes.jsonl").write_bytes(b"".join(lines[:10]))
    assert main(["train", f"--resume={copy}"]) == 0
    again = run_train(tmp_path / "again", f"--config={run / 'config.yaml'}", f"--runs={tmp_path / 'again'}")
    for other in (copy, again):
        assert (other / "episodes.jsonl").read_bytes() == (run / "episodes.jsonl").read_bytes()
    assert main(["validate", str(run), "--sample=3"]) == 0
    episodes, _ = read_episodes(run / "episodes.jsonl")
    assert {episode.feasible for episode in episodes} == {True}


def test_mistakes_are_one_sentence(refused, tmp_path):
    assert "Did you mean 'haq'" in refused("train", "--preset=haw")
    assert "give one --metric" in refused("train", "--preset=haq", "--metric=size,latency")
    assert "Did you mean 'pins'" in refused("train", "--preset=haq", "--haq.pin=never", f"--runs={tmp_path}")
    assert "is not HAQ's search" in refused("train", "--preset=haq", "--constraint=mask", f"--runs={tmp_path}")
