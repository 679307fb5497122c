"""`quantenv pareto` on a synthetic table, whose true front is known."""

import json
import signal

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.cli.pareto import ParetoOptions, search
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.episodes import read_episodes
from experiments.runs.pareto_front import front, hypervolume, table_points
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from tests.synthetic_table import synthetic_table

TABLE = synthetic_table(5, bits=(2, 4, 6, 8), samples=300)
SMALL = "--agent_options.hidden=8"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    TABLE.save(path)
    return path


@pytest.fixture
def run(file, tmp_path, capsys):
    def run(*arguments):
        capsys.readouterr()
        assert main(["pareto", f"--task={file}", f"--runs={tmp_path}", "--json", *arguments]) == 0
        content = json.loads(capsys.readouterr().out)
        folders = sorted(tmp_path.glob("*/pareto/*"), key=lambda path: path.stat().st_mtime_ns)
        assert json.loads((folders[-1] / "front.json").read_text()) == content
        return content, folders[-1]

    return run


@pytest.mark.parametrize("agent", ["nsga2", "reinforce", "random"])
def test_the_front_is_that_of_everything_evaluated(run, agent):
    small = [SMALL] if agent == "reinforce" else []
    content, folder = run(f"--agent={agent}", "--evaluations=60", "--levels=5", *small)
    episodes, _ = read_episodes(folder / "episodes.jsonl")
    assert len(episodes) == content["evaluations"] == 60
    assert {bits for bits, _ in episodes[0].bits} == {2}
    costs = np.array([episode.costs["size"] for episode in episodes])
    accuracies = np.array([episode.accuracy for episode in episodes])
    best = front(costs, accuracies)
    assert [point["cost"] for point in content["points"]] == costs[best].tolist()
    assert [point["search"]["accuracy"] for point in content["points"]] == accuracies[best].tolist()
    for point in content["points"]:
        row = TABLE.index(Allocation.from_dict(point["allocation"]))
        assert point["test"]["correct"] == TABLE.evaluation(row, "test").correct
        assert episodes[point["evaluation"] - 1].costs["size"] == point["cost"]
    env = QuantizationEnv(TABLE, budget=1.0)
    full = env.tables["size"].reference
    assert (content["low"], content["high"]) == pytest.approx((full / 4, full))
    true = table_points(TABLE, env.tables["size"], env.allowed)
    assert content["true"]["mean_accuracy"] == pytest.approx(hypervolume(*true, full) / (0.75 * full))
    assert content["hypervolume"] == pytest.approx(hypervolume(costs, accuracies, full))
    assert content["uniform"]["mean_accuracy"] <= content["true"]["mean_accuracy"]
    assert content["mean_accuracy"] <= content["true"]["mean_accuracy"] + 1e-12
    for name in ("config.yaml", "front.png", "agent.safetensors"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("agent", ["nsga2", "ppo"])
def test_same_seed_same_front_and_a_front_repeats_from_its_config(run, agent):
    small = [SMALL] if agent == "ppo" else []
    first, folder = run(f"--agent={agent}", "--evaluations=50", "--levels=4", *small)
    again, _ = run(f"--config={folder / 'config.yaml'}")
    assert again == first
    other, _ = run(f"--config={folder / 'config.yaml'}", "--seed=1")
    assert other["points"] != first["points"]


def test_a_budget_ends_the_front(run):
    for agent in ("nsga2", "random"):
        content, folder = run(f"--agent={agent}", "--evaluations=40", "--levels=4", "--budget=0.5")
        assert content["high"] == pytest.approx(2 * content["low"])
        episodes, _ = read_episodes(folder / "episodes.jsonl")
        assert max(episode.costs["size"] for episode in episodes) <= content["high"] * (1 + 1e-9)


def test_a_policy_learns_to_use_the_budget_that_it_sees(run):
    content, folder = run("--task=digits_table", "--agent=reinforce", "--evaluations=700", "--levels=8", SMALL)
    episodes, _ = read_episodes(folder / "episodes.jsonl")
    greedy = episodes[-8:]
    costs = [episode.costs["size"] for episode in greedy]
    assert costs == sorted(costs)
    assert len(set(costs)) >= 3  # of six searches, with other seeds or more evaluations: 3, 8, 8, 7, 6, 3
    wrong = [np.mean([1 - episode.accuracy for episode in part]) for part in (episodes[1:101], greedy)]
    assert wrong[1] < 0.6 * wrong[0]  # at first, and in the end
    assert content["true"]["mean_accuracy"] - content["mean_accuracy"] < 0.05


def test_an_interrupted_search_gives_the_front_so_far(tmp_path):
    class Stop(GracefulStop):
        def check(self, *episodes):
            if episodes[0].evaluation == 9:
                raise Interrupted(signal.SIGTERM)

    options = ParetoOptions(agent="nsga2", runs=str(tmp_path))
    report, code = search(options, QuantizationEnv(TABLE, budget=1.0), Stop())
    assert (code, report.evaluations) == (143, 9)
    (folder,) = tmp_path.glob("*/pareto/*")
    assert json.loads((folder / "front.json").read_text())["evaluations"] == 9


def test_nsga2_comes_close_to_the_front(run):
    content, _ = run("--agent=nsga2", "--evaluations=300")
    assert content["true"]["mean_accuracy"] - content["mean_accuracy"] < 0.005


def test_text(file, tmp_path, capsys):
    assert main(["pareto", f"--task={file}", f"--runs={tmp_path}", "--agent=random", "--evaluations=30"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("search accuracy", "all 2", "uniform allocations", "The true front offers"):
        assert part in text


def test_a_live_task_has_no_true_front(tmp_path, capsys):
    arguments = ["--task=digits", "--agent=random", "--evaluations=12", "--levels=2", "--decisions=joint", "--json"]
    assert main(["pareto", f"--runs={tmp_path}", "--bits=[2,4,8]", "--metric=bops", *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["true"] is None
    assert (content["metric"], content["task"]) == ("bops", "digits")


def test_mistakes_are_one_sentence(refused, file):
    assert "gives no front" in refused("pareto", f"--task={file}", "--agent=annealing")
    assert "Did you mean 'reinforce'" in refused("pareto", f"--task={file}", "--agent=reinforse")
    assert "needs at least 18" in refused("pareto", f"--task={file}", "--agent=ppo", "--evaluations=17")
    assert "Did you mean 'size'" in refused("pareto", f"--task={file}", "--metric=sise")
    assert "Did you mean 'size'" in refused("pareto", f"--task={file}", "--metric=sise", "--agent=random")
    assert "only the cheapest" in refused("pareto", f"--task={file}", "--agent=random", "--budget=0.25")
