import pytest
import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.tasks.networks.models import make_network


def test_torchvision_networks_take_classes_and_arguments():
    network = make_network("torchvision:squeezenet1_1", classes=7, arguments={"dropout": 0.1})
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert any(module.p == 0.1 for module in network.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize(
    ("model", "weights", "sentence"),
    [
        ("squeezenet", None, "not of the form"),
        ("torchvision:squeezenet9", None, "Unknown torchvision model"),
        ("torchvision:fasterrcnn_resnet50_fpn", None, "Unknown torchvision model"),
        ("tests.networks:missing", None, "Cannot import model"),
        ("tests.tasks.images:write_images", None, "Cannot make tests"),
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
