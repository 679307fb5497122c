import pytest

from agents.base import BUILT_IN
from experiments.cli.main import main
from experiments.runs.continuing import TOGETHER, episodes_together
from experiments.runs.episodes import read_episodes
from experiments.runs.run_folder import RunFolder
from experiments.runs.tensorboard import EVENTS
from tests.agents.searches import SMALL, search
from tests.digits import FEW_DIGITS
from tests.experiments.cli.test_train import cut, results
from tests.experiments.conftest import SHORT, run_train

#: A run of 40 evaluations would be played in batches of 16, 16 and 8.
LONGER = 53


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    return run_train(tmp_path_factory.mktemp("longer"), *SHORT, f"--evaluations={LONGER}")


@pytest.mark.parametrize("recorded", [40, 39, 20])
def test_a_run_given_more_evaluations_is_the_longer_run(recorded, longer, run_copy):
    if recorded < 40:
        cut(run_copy, recorded)
    assert main(["train", "--resume", str(run_copy), f"--evaluations={LONGER}"]) == 0
    assert results(run_copy) == results(longer)
    assert RunFolder(run_copy).options().evaluations == LONGER
    assert len(list(run_copy.glob(EVENTS))) == 1
    assert main(["validate", str(run_copy), "--sample=3"]) == 0
    assert main(["train", "--resume", str(run_copy)]) == 0  # prints its table
    assert results(run_copy) == results(longer)


def test_an_extension_that_was_killed_goes_on(longer, run_copy, monkeypatch):
    def killed(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.running.learn", killed)
        with pytest.raises(MemoryError):
            main(["train", "--resume", str(run_copy), f"--evaluations={LONGER}"])
    assert 0 < len(read_episodes(run_copy / "episodes.jsonl")[0]) <= 40
    assert not (run_copy / "report.json").exists()
    assert main(["train", "--resume", str(run_copy)]) == 0
    assert results(run_copy) == results(longer)


@pytest.mark.parametrize("given", ["39", "1"])
def test_fewer_evaluations_are_refused(given, run_copy, refused):
    before = results(run_copy)
    sentence = refused("train", "--resume", str(run_copy), "--evaluations", given)
    assert f"--evaluations is {given}, and {run_copy} is a run of 40" in sentence
    assert results(run_copy) == before


def test_the_same_number_and_the_run_s_own_options_are_no_contradiction(run_copy):
    assert main(["train", "--resume", str(run_copy), "--evaluations=40", "--seed=0", "--top_k=3"]) == 0


def test_a_default_that_differs_from_the_run_is_refused(run_copy, refused):
    assert "--top_k cannot be given" in refused("train", "--resume", str(run_copy), "--top_k=10")


def test_an_agent_that_plans_ahead_is_refused(tmp_path, refused):
    options = (f"--task={FEW_DIGITS}", "--agent=differentiable", "--evaluations=12", "--qat.epochs=0")
    folder = run_train(tmp_path, *options)
    assert "divides all its evaluations" in refused("train", "--resume", str(folder), "--evaluations=20")


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "differentiable"])
def test_a_longer_search_begins_like_a_shorter_one(name):
    together = episodes_together(name, SMALL.get(name, {}))
    shorter, longer = search(name, 43), search(name, 61)
    settled = 43 - (together - 1)
    assert shorter.bits[:settled] == longer.bits[:settled]


def test_agents_say_how_many_episodes_they_play_together():
    assert TOGETHER
    assert episodes_together("random", {}) == 1
    assert episodes_together("reinforce", {}) == 16
    assert episodes_together("reinforce", {"episodes_per_update": 5}) == 5
    assert episodes_together("surrogate", {}) == 32
