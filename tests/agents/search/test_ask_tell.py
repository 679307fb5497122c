"""What all baselines share, checked on an optimiser that asks for a fixed list."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from agents.checkpoint import FORMAT
from agents.search.ask_tell import LARGEST_BATCH, AskTellAgent, Found, Results
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors
from tests.agents.searches import make_env, play_greedily


@dataclass(frozen=True)
class ListConfig:
    batch: int = 3


class ListAgent(AskTellAgent):
    """Asks for what it was given, a few at a time."""

    name = "list"
    config_class = ListConfig

    def __init__(self, env, candidates, config=None):
        super().__init__(env, 0, config)
        self.left = np.array(candidates, dtype=np.int64).reshape(-1, self.problem.n_decisions)
        self.counts, self.told = [], []

    def ask(self, count):
        self.counts.append(count)
        count = min(count, self.config.batch)
        asked, self.left = self.left[:count], self.left[count:]
        return asked

    def tell(self, results):
        self.told.append(results)

    def metrics(self):
        return {"train/told": len(self.told)}


def _everything(env):
    return np.array(list(np.ndindex(*[env.action_space.n] * env.unwrapped.n_decisions)))


@pytest.mark.parametrize(("constraint", "batch", "sizes"), [("mask", 3, [3, 3, 2]), ("lagrangian", 1, [1] * 8)])
def test_what_is_told_is_what_the_environment_says(constraint, batch, sizes):
    env = make_env(count=3, budget=1.0, constraint=constraint)
    candidates = np.random.default_rng(0).integers(7, size=(8, 3))
    agent = ListAgent(env, candidates, ListConfig(batch))
    logged = []
    agent.learn(8, logged.append)
    assert [len(results) for results in agent.told] == sizes
    assert agent.counts == [8 - sum(sizes[:index]) for index in range(len(sizes))]
    assert logged == [{"train/told": index + 1} for index in range(len(sizes))]
    assert np.concatenate([results.actions for results in agent.told]).tolist() == candidates.tolist()
    for name in ("accuracy", "loss", "feasible"):
        told = np.concatenate([getattr(results, name) for results in agent.told])
        assert told.tolist() == [info[name] for info in env.infos]
    assert np.concatenate([results.reward for results in agent.told]).tolist() == env.rewards


def test_executed_actions_are_told_under_projection():
    env = make_env(count=3, budget=0.4, constraint="project")
    agent = ListAgent(env, [[6, 6, 6], [0, 0, 0]])
    agent.learn(2, lambda metrics: None)
    (results,) = agent.told
    assert results.actions.tolist() == [info["executed_actions"].tolist() for info in env.infos]
    assert results.actions[0].tolist() != [6, 6, 6]
    assert results.feasible.all()
    assert agent.problem.feasible(results.actions).all()


def test_what_is_left_goes_to_the_best_one_and_is_not_told():
    env = make_env(count=3, budget=1.0)
    agent = ListAgent(env, [[0, 0, 0], [6, 6, 6], [3, 3, 3]])
    agent.learn(100, lambda metrics: None)
    assert env.unwrapped.evaluations == len(env.rewards) == 100
    assert sum(map(len, agent.told)) == 3
    assert env.taken[3:] == [[6, 6, 6]] * 97
    assert max(agent.counts[2:]) == LARGEST_BATCH
    agent.learn(2, lambda metrics: None)
    assert env.taken[100:] == [[6, 6, 6]] * 2


def test_nothing_to_propose_at_all_is_one_clear_error():
    with pytest.raises(QuantenvError, match=r"'list' has no allocation to propose.*raise the budget"):
        ListAgent(make_env(), []).learn(1, lambda metrics: None)


@pytest.mark.parametrize("asked", [np.zeros((3, 4)), np.zeros((1, 3)), np.zeros(4)])
def test_a_wrong_answer_to_ask_is_one_clear_error(asked):
    env = make_env()
    agent = ListAgent(env, [])
    agent.ask = lambda count: asked
    with pytest.raises(QuantenvError, match=r"proposed candidates of shape .* expected up to 2 rows of 4 option"):
        agent.learn(2, lambda metrics: None)
    assert env.rewards == []


@pytest.mark.parametrize("constraint", ["mask", "reject", "lagrangian"])
def test_best_is_the_first_feasible_one_of_most_accuracy_then_least_loss(constraint):
    env = make_env(count=3, budget=0.5, bits=(2, 4, 8), constraint=constraint)
    agent = ListAgent(env, _everything(env))
    agent.learn(27, lambda metrics: None)
    infos = [info for info in env.infos if info["feasible"]]
    best = max(infos, key=lambda info: (info["accuracy"], -info["loss"]))
    assert agent.best == Found(tuple(best["executed_actions"].tolist()), best["accuracy"], best["loss"], True)
    assert play_greedily(env, agent) == best["bits"].tolist()
    assert play_greedily(env, agent) == best["bits"].tolist()


def test_an_infeasible_one_is_kept_only_until_a_feasible_one_is_found():
    env = make_env(count=3, budget=0.4, constraint="reject")
    agent = ListAgent(env, [[6, 6, 6], [0, 0, 0]], ListConfig(batch=1))
    agent.learn(1, lambda metrics: None)
    assert agent.best.actions == (6, 6, 6)
    agent.learn(1, lambda metrics: None)
    assert agent.best.actions == (0, 0, 0)


def test_ties_go_to_lower_loss_then_to_the_earlier_one():
    def results(*rows):
        accuracy, loss = np.array(rows).T
        actions = np.tile(np.arange(len(rows))[:, None], 4)
        return Results(actions, accuracy, loss, np.ones(len(rows), bool), accuracy)

    agent = ListAgent(make_env(), [])
    agent._keep_best(results((0.5, 0.3), (0.9, 0.3), (0.9, 0.2), (0.9, 0.2), (0.8, 0.1)))
    assert agent.best.actions == (2,) * 4
    agent._keep_best(results((0.9, 0.2)))
    assert agent.best.actions == (2,) * 4


def test_objective_orders_by_error_and_by_loss_where_that_is_equal():
    accuracy, loss = np.array([0.9, 0.9, 0.8]), np.array([0.3, 0.2, 0.2])
    results = Results(np.zeros((3, 4), int), accuracy, loss, np.ones(3, bool), accuracy)
    np.testing.assert_allclose(results.objective, [0.13, 0.12, 0.22])


def test_acting_under_another_mask_takes_the_nearest_allowed():
    agent = ListAgent(make_env(budget=1.0), [[3, 3, 3, 3]])
    agent.learn(1, lambda metrics: None)
    observation = np.zeros(1, np.float32)
    masks = np.array([[1] * 7, [0, 0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0]])
    agent.start_episode()
    assert [agent.act(observation, mask) for mask in masks] == [3, 2, 5, 1]
    with pytest.raises(QuantenvError, match=r"call start_episode\(\)"):
        agent.act(observation, masks[0])


def test_acting_before_anything_was_found_is_one_clear_error():
    with pytest.raises(QuantenvError, match="'list' has found nothing to act by"):
        ListAgent(make_env(), []).act(np.zeros(1, np.float32), np.ones(7))


def test_saved_and_loaded_acts_the_same(tmp_path):
    env = make_env(budget=1.0)
    agent = ListAgent(env, [[1, 2, 3, 4]])
    agent.save(tmp_path / "empty")
    agent.learn(1, lambda metrics: None)
    agent.save(tmp_path / "agent")
    other = ListAgent(make_env(budget=1.0), [])
    other.load(tmp_path / "agent")
    assert other.best == agent.best
    assert play_greedily(other.env, other) == env.bits[0]
    other.load(tmp_path / "empty")
    assert other.best is None


def _damaged(change):
    def write(path):
        content, _ = read_tensors(path, FORMAT, "", "")
        change(content)
        write_tensors(path, FORMAT, content, {})

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "There is no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "damaged or truncated"),
        (lambda path: path.write_text("[]"), "is not an agent file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"accuracy", b"accurate")), "match its checksum"),
        (lambda path: write_tensors(path, "other", {"agent": "list"}, {}), "its format is not"),
        (_damaged(lambda content: content.update(agent="uniform")), "holds a 'uniform' agent and cannot"),
        (_damaged(lambda content: content.update(agent=[])), "names no agent"),
        (_damaged(lambda content: content["decisions"].update(bits=[2, 8])), "saved for another environment"),
        (_damaged(lambda content: content["best"].update(actions=[1, 2, 3])), "damaged: it holds no sound candidate"),
        (_damaged(lambda content: content["best"].update(actions=[1, 2, 3, 7])), "damaged"),
        (_damaged(lambda content: content["best"].update(actions=[1, 2, 3, True])), "damaged"),
        (_damaged(lambda content: content["best"].update(loss=None)), "damaged"),
        (_damaged(lambda content: content["best"].update(accuracy=math.nan)), "damaged"),
        (_damaged(lambda content: content["best"].update(more=1)), "damaged"),
        (_damaged(lambda content: content["best"].pop("accuracy")), "damaged"),
        (_damaged(lambda content: content.update(best=3)), "damaged"),
    ],
)
def test_bad_files_are_one_clear_error_and_change_nothing(tmp_path, damage, message):
    agent = ListAgent(make_env(budget=1.0), [[1, 2, 3, 4]])
    agent.learn(1, lambda metrics: None)
    before = agent.best
    agent.save(tmp_path / "agent")
    damage(tmp_path / "agent")
    with pytest.raises(QuantenvError, match=message):
        agent.load(tmp_path / "agent")
    assert agent.best == before
