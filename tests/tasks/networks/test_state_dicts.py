import os

import pytest
import safetensors.torch
import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.tasks.networks.models import make_network
from quantenv.tasks.networks.state_dicts import load_weights
from tests.networks import branched


class Harmful:
    def __reduce__(self):
        return os.abort, ()


def same(network, source):
    return all(torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items())


def compiled(state):
    """What a part of a network is called that was compiled by itself."""
    return {name.replace("block.", "block._orig_mod."): value for name, value in state.items()}


def lightning(state):
    loss = {"criterion.weight": torch.ones(5)}
    return {"epoch": 3, "state_dict": {f"net.{name}": value for name, value in state.items()} | loss, "callbacks": {}}


def averaged(state):
    return {"n_averaged": torch.tensor(9)} | {f"module.{name}": value for name, value in state.items()}


WRAPS = {
    "plain": lambda state: state,
    "checkpoint": lambda state: {"state_dict": state, "epoch": 3},
    "in a checkpoint": lambda state: {"model": {"state_dict": state}, "ema": None},
    "compiled part": compiled,
    "lightning": lightning,
    "average": lambda state: {"model_ema": averaged(state)},
    "average beside": lambda state: {"state_dict": state, "state_dict_ema": {k: v + 1 for k, v in state.items()}},
    "double": lambda state: {
        name: value.double() if value.is_floating_point() else value for name, value in state.items()
    },
    "old norms": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_weights_of_a_file_arrive(tmp_path, wrap, prefix):
    source = branched(seed=3)
    torch.save(wrap({prefix + key: value for key, value in source.state_dict().items()}), tmp_path / "weights.pt")
    network = make_network("tests.networks:branched", weights=str(tmp_path / "weights.pt"))
    assert same(network, source)
    assert not network.training


def test_a_compiled_network_takes_plain_weights(tmp_path):
    source = branched(seed=3)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    network = torch.compile(branched())
    load_weights(network, tmp_path / "weights.pt")
    assert same(network._orig_mod, source)


def test_safetensors_keep_tied_weights_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    source, network = Tied(), Tied()
    safetensors.torch.save_model(source, tmp_path / "weights.safetensors")
    load_weights(network, tmp_path / "weights.safetensors")
    assert same(network, source)


def saved(content):
    def write(path):
        torch.save(content, path)

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b"no weights"), "Cannot read the weights"),
        (saved(Harmful()), "Cannot read the weights"),
        (saved(branched()), "Cannot read the weights"),
        (saved([1, 2]), "hold no state dict"),
        (saved({"epoch": 3}), "hold no state dict: 'epoch' is a int"),
        (saved({1: torch.zeros(1)}), "hold no state dict: '1' is a Tensor under a int"),
        (saved({"shadow_params": [torch.zeros(1)]}), "'shadow_params' is a list"),
        (
            saved({f"{part}.{k}": v for part in "ab" for k, v in branched().state_dict().items()}),
            "under 'a.' and under",
        ),
        (saved({**branched().state_dict(), "_orig_mod.stem.weight": torch.zeros(1)}), "hold a name twice"),
        (saved({**branched().state_dict(), "head.bias": torch.full((5,), torch.nan)}), "'head.bias' holds NaN"),
        (saved({**branched().state_dict(), "head.bias": torch.ones(5).to_sparse()}), "'head.bias' is sparse_coo"),
        (saved({f"module.{k}": v for k, v in branched().state_dict().items() if k != "head.bias"}), "lack 'head.bias'"),
        (saved({**branched().state_dict(), "extra": torch.zeros(1)}), "hold the unknown 'extra'"),
        (saved({}), "they lack 'block.depthwise.bias' and"),
        (saved({**branched().state_dict(), "head.bias": torch.zeros(9)}), r"'head.bias' is \(9,\), expected \(5,\)"),
    ],
)
def test_unusable_weights_are_clear_errors(tmp_path, write, sentence):
    network, path = branched(), tmp_path / "weights.pt"
    write(path)
    with pytest.raises(QuantenvError, match=sentence):
        load_weights(network, path)
    assert all(torch.equal(value, branched().state_dict()[key]) for key, value in network.state_dict().items())
