"""`quantenv tune` on a shipped table, and the options files that it writes."""

import dataclasses

import numpy as np
import optuna
import pytest
import yaml

from agents import agent_class
from experiments.cli import tune
from experiments.cli.main import main
from experiments.cli.tune import TuneOptions, accuracy_lost, find_space
from experiments.leaderboard.jobs import run_job
from experiments.leaderboard.suite import FIRST_TUNING_SEED, BenchmarkOptions, jobs
from experiments.options.agents import read_sections, resolved_options, shipped
from quantenv.core.errors import QuantenvError

OPTIONS = ("--agent=a2c", "--task=digits_table", "--budgets=[0.45]", "--seeds=2", "--evaluations=12")
SPACES = read_sections(tune.importlib.resources.files("experiments.configs") / "spaces.yaml")


@pytest.fixture
def in_process(monkeypatch):
    """Runs searches here and counts them."""
    run = []

    def run_all(wanted, workers, pool, stop, store=None):
        for job in reversed(wanted):  # searches may end in any order
            run.append(job)
            yield job, run_job(job, store)

    monkeypatch.setattr(tune, "run_all", run_all)
    return run


def _tune(folder, trials, *more):
    return main(["tune", *OPTIONS, f"--trials={trials}", f"--output={folder}", *more])


def _trials(folder):
    study = optuna.load_study(storage=f"sqlite:///{folder / 'tuning.sqlite'}", study_name="quantenv")
    return study.get_trials(deepcopy=False)


def test_writes_the_best_options_found_on_tuning_seeds(in_process, tmp_path, capsys):
    assert _tune(tmp_path, 3) == 0
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert capsys.readouterr().out == (tmp_path / "best.yaml").read_text()
    assert {job.seed for job in in_process} == {1000, 1001}
    trials = _trials(tmp_path)
    assert len(trials) == 3
    config = agent_class("a2c").config_class(**resolved_options("a2c", "digits_table", {}))
    assert trials[0].params == {name: getattr(config, name) for name in SPACES["a2c"]}
    best = min(trials, key=lambda trial: trial.value)
    assert written == {"digits_table": best.user_attrs["agent_options"]}
    repeated = [
        accuracy_lost(run_job(job))
        for job in TuneOptions(agent="a2c", task="digits_table", budgets=[0.45], seeds=2, evaluations=12).jobs(
            written["digits_table"]
        )
    ]
    assert best.value == pytest.approx(np.mean(repeated))


def test_continuing_gives_what_one_go_gives(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "BATCH", 2)
    _tune(tmp_path / "once", 4)
    _tune(tmp_path / "twice", 2)
    searches = len(in_process)
    _tune(tmp_path / "twice", 4)
    assert len(in_process) - searches == 2 * 2
    once, twice = ([(t.params, t.value) for t in _trials(tmp_path / name)] for name in ("once", "twice"))
    assert once == twice
    searches = len(in_process)
    _tune(tmp_path / "twice", 4)
    assert len(in_process) == searches


def test_trials_of_a_killed_process_are_drawn_again(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "BATCH", 2)
    _tune(tmp_path / "once", 2)
    scores = tune._scores

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_scores", killed)
    assert _tune(tmp_path / "killed", 2) == 130
    monkeypatch.setattr(tune, "_scores", scores)
    assert _tune(tmp_path / "killed", 2) == 0
    drawn = [(t.params, t.value) for t in _trials(tmp_path / "killed") if t.value is not None]
    assert drawn == [(t.params, t.value) for t in _trials(tmp_path / "once")]


def test_another_tuning_is_not_continued(in_process, tmp_path, refused):
    _tune(tmp_path, 1)
    sentence = refused("tune", *OPTIONS, "--trials=1", f"--output={tmp_path}", "--evaluations=13")
    assert "evaluations is 13, and was 12" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--agent=random"], "no shipped space for agent 'random'"),
        (["--agent=nobody"], "nobody"),
        (["--agent_options={learning_rate: 0.5}", "--trials=0"], "--trials is 0"),
        (["--agent_options={episodes_per_update: 1}"], "at least 2"),
    ],
)
def test_mistakes_are_one_sentence(in_process, arguments, words, tmp_path, refused):
    assert words in refused(
        "tune",
        "--task=digits_table",
        "--evaluations=5",
        "--agent=a2c",
        "--trials=1",
        f"--output={tmp_path}",
        *arguments,
    )


@pytest.mark.parametrize("agent", SPACES)
def test_shipped_spaces_hold_the_options_in_force_on_every_task(agent):
    options = TuneOptions(agent=agent)
    for task in ("digits_table", "resnet20_table"):
        tune._in_force(agent, resolved_options(agent, task, {}), find_space(options))


@pytest.mark.parametrize(
    "space",
    [
        "a2c: {hidden: {low: 1}}",
        "a2c: {hidden: 3}",
        "a2c: {size: {low: 1, high: 2}}",
        "a2c: 3",
        "b: {}",
        "a2c: {}",
        "a2c: {hidden: {choices: []}}",
        "a2c: {hidden: {choices: 3}}",
        "a2c: {hidden: {choices: [a]}}",
        "a2c: {hidden: {choices: [1.5]}}",
        "a2c: {hidden: {low: a, high: b}}",
        "a2c: {hidden: {low: 3, high: 1}}",
        "a2c: {hidden: {low: null, high: 1}}",
        "a2c: {learning_rate: {low: 0.0, high: 1.0, log: true}}",
        "a2c: {learning_rate: {low: 0.1, high: .inf}}",
        "a2c: {learning_rate: {low: 0.1, high: 1, log: 3}}",
        "a2c: {hidden: {choices: [{class_path: subprocess.Popen}]}}",
    ],
)
def test_malformed_spaces_are_refused(space, tmp_path):
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(QuantenvError):
        find_space(TuneOptions(agent="a2c", space=str(tmp_path / "space.yaml")))


def test_space_that_leaves_out_the_options_in_force_is_refused(in_process, tmp_path, refused):
    (tmp_path / "space.yaml").write_text("a2c: {hidden: {choices: [3, 4]}}")
    assert "leaves out its value in force, 64" in refused(
        "tune", *OPTIONS, f"--space={tmp_path / 'space.yaml'}", f"--output={tmp_path}"
    )


def test_tuned_options_reach_train_and_benchmark_and_given_ones_win(tmp_path, monkeypatch):
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "a2c.yaml").write_text("any: {hidden: 16, learning_rate: 0.01}\ndigits_table: {hidden: 32}\n")
    monkeypatch.setattr("experiments.options.agents.shipped", lambda: folder)
    assert resolved_options("a2c", "digits_table", {}) == {"hidden": 32, "learning_rate": 0.01}
    assert resolved_options("a2c", "resnet20_table", {"learning_rate": 0.5}) == {"hidden": 16, "learning_rate": 0.5}
    assert resolved_options("random", "digits_table", {}) == {}
    suite = BenchmarkOptions(agents=["a2c"], tasks=["digits_table"], seeds=1, agent_options={"a2c": {"hidden": 8}})
    assert jobs(suite)[0].agent_options == {"hidden": 8, "learning_rate": 0.01}
    assert main(["train", "--agent=a2c", "--task=digits_table", "--evaluations=4", f"--runs={tmp_path / 'runs'}"]) == 0
    (config,) = (tmp_path / "runs").glob("*/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["agent_options"] == {"hidden": 32, "learning_rate": 0.01}


def test_shipped_options_are_the_agents_own():
    for file in shipped().iterdir():
        if file.name.endswith(".yaml"):
            config = agent_class(file.name.removesuffix(".yaml")).config_class
            for section in read_sections(file).values():
                assert set(section) <= {field.name for field in dataclasses.fields(config)}


def test_benchmarks_stay_below_the_tuning_seeds():
    with pytest.raises(QuantenvError, match="tuned on the seeds from there on"):
        BenchmarkOptions(seeds=FIRST_TUNING_SEED + 1)
