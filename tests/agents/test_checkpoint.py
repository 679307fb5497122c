import pickle

import pytest
import torch
from torch import nn

from agents.checkpoint import FORMAT, load_modules, save_modules
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import write_tensors
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
    with pytest.raises(QuantenvError, match=r"files of torch\.save, of earlier versions, are not read any more"):
        load_modules(tmp_path / "agent", "x", {"net": nn.Linear(1, 1)})
    assert not (tmp_path / "boom").exists()


def test_nothing_changes_unless_everything_fits(tmp_path):
    save_modules(tmp_path / "agent", "x", {"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)})
    target = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    before = target["a"].weight.clone()
    with pytest.raises(QuantenvError, match=r"its b\.bias has shape \(3,\), this agent's has \(2,\)"):
        load_modules(tmp_path / "agent", "x", target)
    assert torch.equal(target["a"].weight, before)


def test_every_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    path, net = tmp_path / "agent", nn.Linear(3, 2)
    save_modules(path, "x", {"net": net})
    content = path.read_bytes()
    target, refused = nn.Linear(3, 2), 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        try:
            load_modules(path, "x", {"net": target})
            expected = net.state_dict()
        except QuantenvError:
            expected, refused = before, refused + 1
        assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())
    assert refused > 0.9 * len(content)


NET = {"net.weight": torch.zeros(2, 2), "net.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("description", "tensors", "message"),
    [
        ({}, NET, "names no agent"),
        ({"agent": None}, NET, "names no agent"),
        ({"agent": "y"}, NET, "holds a 'y' agent"),
        ({"agent": "x", "seed": 1}, NET, "says more than"),
        ({"agent": "x"}, {}, "its net.bias has shape None"),
        ({"agent": "x"}, {**NET, "other.weight": torch.zeros(1)}, "this agent's has None"),
        ({"agent": "x"}, {**NET, "net.bias": torch.zeros(())}, r"its net.bias has shape \(\)"),
        ({"agent": "x"}, {**NET, "net.bias": torch.zeros(2, dtype=torch.float64)}, "expected torch.float32"),
        ({"agent": "x"}, {**NET, "net.bias": torch.tensor([0, torch.nan])}, "holds NaN or infinity in net.bias"),
        ({"agent": "x"}, {**NET, "net.weight": torch.full((2, 2), torch.inf)}, "holds NaN or infinity in net.weight"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(description, tensors, message, tmp_path):
    write_tensors(tmp_path / "agent", FORMAT, description, tensors)
    target = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(QuantenvError, match=message):
        load_modules(tmp_path / "agent", "x", {"net": target})
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_an_agent_of_an_earlier_version_is_one_sentence(tmp_path):
    torch.save({}, tmp_path / "agent.pt")
    with pytest.raises(QuantenvError, match=r"agent\.pt beside it is of an earlier version"):
        load_modules(tmp_path / "agent.safetensors", "x", {"net": nn.Linear(1, 1)})
