import pytest
import torch
from torch import nn

from quantenv.graph.layers import describe
from quantenv.graph.sites import find_sites
from quantenv.graph.tracing import trace
from quantenv.tasks.networks.cifar import NETWORKS
from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.resnet20 import ResNet20


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("resnet20", 269_722, 20),  # He et al. 2016, table 6: 0.27M, 0.46M and 0.85M
        ("resnet32", 464_154, 32),
        ("resnet56", 853_018, 56),
        ("mobilenet_v2", 3_504_872 - 990 * 1281, 53),  # torchvision's of 1,000 classes, with 10
    ],
)
def test_sizes_are_the_papers(name, parameters, layers):
    network = NETWORKS[name](3, 10).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    example = torch.zeros(2, 3, 32, 32)
    assert len(describe(network, example)) == layers
    find_sites(trace(network), example)
    assert network(example).shape == (2, 10)


def test_resnet20_takes_the_weights_of_the_older_task():
    older, newer = ResNet20().eval(), NETWORKS["resnet20"](3, 10).eval()
    newer.load_state_dict(older.state_dict())
    example = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(newer(example), older(example))


def test_mobilenet_halves_32_pixels_three_times():
    network, shapes = NETWORKS["mobilenet_v2"](3, 10).eval(), []
    network.features.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    network(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 1280, 4, 4)]
    strides = [module.stride for module in network.modules() if isinstance(module, nn.Conv2d)]
    usual = [module.stride for module in torchvision().models.mobilenet_v2().modules() if isinstance(module, nn.Conv2d)]
    assert len(strides) == len(usual)
    assert [index for index, (one, other) in enumerate(zip(strides, usual, strict=True)) if one != other] == [0, 6 - 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_grey_images_of_28_pixels_and_other_classes(name):
    assert NETWORKS[name](1, 7).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
