import pickle

import pytest
import torch
from torch import nn

from agents.checkpoint import load_modules, save_modules
from quantenv.errors import QuantenvError
from tests.agents.searches import LEARNERS, agent, make_env, play_greedily

AGENTS = (*LEARNERS, "random")


@pytest.mark.parametrize("name", AGENTS)
def test_a_loaded_agent_acts_as_the_saved_one(name, tmp_path):
    env = make_env()
    trained = agent(name, env, seed=1)
    trained.learn(16, lambda metrics: None)
    trained.save(tmp_path / "made" / "agent")
    fresh = agent(name, env, seed=2)
    fresh.load(tmp_path / "made" / "agent")
    assert play_greedily(env, fresh) == play_greedily(env, trained)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["agent"]
    fresh.learn(5, lambda metrics: None)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "noise", "middle", "text"])
def test_damaged_files_are_one_clear_error(name, damage, tmp_path):
    env, path = make_env(), tmp_path / "agent"
    player = agent(name, env)
    player.save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        broken = {
            "empty": b"",
            "truncated": content[:middle],
            "noise": bytes(range(256)),
            "middle": content[: middle // 8] + b"\xff" * (len(content) - middle // 8 - 40) + content[-40:],
            "text": b'{"agent": 1}',
        }
        path.write_bytes(broken[damage])
    before = play_greedily(env, player)
    with pytest.raises(QuantenvError, match=str(path)):
        player.load(path)
    assert play_greedily(env, player) == before


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("other", AGENTS)
def test_another_agents_file_is_refused(name, other, tmp_path):
    if name == other:
        return
    env, path = make_env(), tmp_path / "agent"
    agent(other, env).save(path)
    with pytest.raises(QuantenvError, match="agent"):
        agent(name, env).load(path)


@pytest.mark.parametrize("name", LEARNERS)
def test_another_environments_file_is_refused(name, tmp_path):
    agent(name, make_env()).save(tmp_path / "agent")
    with pytest.raises(QuantenvError, match=r"saved for another environment or config: its .* has shape"):
        agent(name, make_env(observation="haq")).load(tmp_path / "agent")


def test_loading_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"format": "quantenv-agent-1", "agent": "x", "modules": Bomb()}, tmp_path / "agent")
    assert Bomb().__reduce__()[0] is open
    assert pickle.dumps(Bomb())
    with pytest.raises(QuantenvError, match="not an agent file"):
        load_modules(tmp_path / "agent", "x", {"net": nn.Linear(1, 1)})
    assert not (tmp_path / "boom").exists()


def test_nothing_changes_unless_everything_fits(tmp_path):
    save_modules(tmp_path / "agent", "x", {"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)})
    target = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    before = target["a"].weight.clone()
    with pytest.raises(QuantenvError, match=r"its b\.bias has shape \(3,\), this agent's has \(2,\)"):
        load_modules(tmp_path / "agent", "x", target)
    assert torch.equal(target["a"].weight, before)
