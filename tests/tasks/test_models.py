import os

import pytest
import torch
from torch import nn

from quantenv.errors import QuantenvError
from quantenv.tasks.models import load_weights, make_network
from tests.networks import branched


class Harmful:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_file_arrive(tmp_path, wrap, prefix):
    source = branched(seed=3)
    torch.save(wrap({prefix + key: value for key, value in source.state_dict().items()}), tmp_path / "weights.pt")
    network = make_network("tests.networks:branched", weights=str(tmp_path / "weights.pt"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items())
    assert not network.training


def test_torchvision_networks_take_classes_and_arguments():
    network = make_network("torchvision:squeezenet1_1", classes=7, arguments={"dropout": 0.1})
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert any(module.p == 0.1 for module in network.modules() if isinstance(module, nn.Dropout))


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
        (saved({"epoch": 3}), "hold no state dict"),
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


@pytest.mark.parametrize(
    ("model", "weights", "sentence"),
    [
        ("squeezenet", None, "not of the form"),
        ("torchvision:squeezenet9", None, "Unknown torchvision model"),
        ("torchvision:fasterrcnn_resnet50_fpn", None, "Unknown torchvision model"),
        ("tests.networks:missing", None, "Cannot import model"),
        ("tests.tasks.test_models:saved", None, "Cannot make tests"),
        ("builtins:dict", None, "returned a dict"),
        ("tests.networks:branched", "DEFAULT", "Only torchvision publishes"),
    ],
)
def test_mistakes_are_clear(model, weights, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        make_network(model, weights=weights)


def test_weights_that_cannot_be_downloaded_are_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(QuantenvError, match=r"Cannot download the weights of torchvision:squeezenet1_1: no route"):
        make_network("torchvision:squeezenet1_1", weights="DEFAULT")
