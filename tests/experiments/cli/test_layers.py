import json

import pytest
import torch
from torch import nn

from experiments.cli import layers
from experiments.cli.main import main

FIELDS = ("name", "kind", "in_channels", "out_channels", "kernel_size", "stride", "groups", "params", "macs")


def listed(capsys, *arguments):
    capsys.readouterr()
    assert main(["layers", "--model=torchvision:squeezenet1_1", "--input=3,32,32", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def one_network(monkeypatch):
    """Makes and traces the network of a test once: what is printed of it is what the test is about."""
    found, ours = [], layers.network_layers

    def network_layers(options):
        if not found:
            found.append(ours(options))
        return found[0]

    monkeypatch.setattr(layers, "network_layers", network_layers)


def test_json_holds_all_that_is_known(capsys):
    found = json.loads(listed(capsys, "--json"))["layers"]
    assert len(found) == 26
    # 64 filters of 3x3x3 at stride 2 without padding: 15x15 outputs
    assert [found[0][field] for field in FIELDS] == [
        *("features.0", "conv", 3, 64, [3, 3], [2, 2], 1),
        *(3 * 9 * 64, 3 * 9 * 64 * 15 * 15),
    ]
    assert found[0]["input_shape"] == [3, 32, 32]


def test_the_table_lists_every_layer_and_the_totals(capsys, one_network):
    found = json.loads(listed(capsys, "--json"))["layers"]
    table = listed(capsys)
    assert all(layer["name"] in table for layer in found)
    assert f"{sum(layer['params'] for layer in found):,}" in table
    assert f"{sum(layer['macs'] for layer in found):,}" in table


def test_products_and_stored_tensors_are_listed_and_counted(capsys):
    assert main(["layers", "--model=tests.graph.test_activations:Parts", "--input=5,8"]) == 0
    table = capsys.readouterr().out
    assert table.count("product ") == 2
    assert "2 layers, 2 products" in table
    assert f"{5 * 8 * 24 + 8 * 2 + 2 * 5 * 5 * 8:,}" in table
    # 40 + 120 + 25 + 40 elements, of which the shares and what they are shares of are no layer's alone
    assert "4 tensors are stored, 64% of their elements at 8 bits" in " ".join(table.split())
    assert "Peak activation memory at 8 bits: 185 B." in table  # queries, keys and values, shares, and what is mixed
    assert main(["layers", "--model=tests.graph.test_activations:Parts", "--input=5,8", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [product["macs"] for product in content["products"]] == [200, 200]
    assert [tensor["elements"] for tensor in content["tensors"]] == [40, 120, 25, 40]


def test_arguments_reach_the_constructor(capsys):
    found = json.loads(listed(capsys, "--json", "--model_arguments={num_classes: 7}"))["layers"]
    assert found[-1]["out_channels"] == 7


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--model torchvision:resnet18"),
        (("--model=resnet18",), "not of the form torchvision:NAME"),
        (("--model=torchvision:resnet19",), "Did you mean"),
        (("--model=no_such_package:make",), "Cannot import model 'no_such_package:make'"),
        (("--model=torchvision:squeezenet1_1", "--input=3,x"), "expected sizes such as 3,224,224"),
        (("--model=torchvision:squeezenet1_1", "--input=1,32,32"), "does not run on an input of shape 1,32,32"),
        (("--model=torchvision:squeezenet1_1", "--model_arguments={colour: red}"), "Cannot make torchvision:squeeze"),
        (("--model=tests.networks:branched", "--input=3,1,1"), "does not run on an input of shape 3,1,1"),
    ],
)
def test_mistakes_are_one_sentence(refused, options, sentence):
    assert sentence in refused("layers", *options)


def test_weights_that_no_decision_covers_are_named_and_counted(capsys):
    assert "stay in float" not in listed(capsys)
    assert main(["layers", "--model=tests.experiments.cli.test_layers:with_positions", "--input=3,8,8"]) == 0
    sentence = " ".join(capsys.readouterr().out.split())
    total = 3 * 4 * 64 + 4 + 4 * 64 + 8 + 4 * 5 + 5
    assert f"264 weights of {total:,} stay in float, and no decision or cost covers them: positions (256)" in sentence
    assert "norm.weight (4), norm.bias (4)" in sentence


class WithPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 4, 8), nn.LayerNorm(4), nn.Linear(4, 5)
        self.positions = nn.Parameter(torch.zeros(64, 4))

    def forward(self, x):
        return self.head(self.norm(self.patches(x).flatten(2).transpose(1, 2) + self.positions.mean(0)).mean(1))


def with_positions():
    return WithPositions()


@pytest.mark.parametrize(("model", "in_float"), [("resnet18", 0), ("mobilenet_v2", 0), ("mobilenet_v3_small", 28)])
def test_it_says_what_is_integer_arithmetic(capsys, one_network, model, in_float):
    capsys.readouterr()
    arguments = ["layers", f"--model=torchvision:{model}", "--input=3,32,32"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["float_operators"]
    assert (len(found) > 0) == (in_float > 0), found
    assert main(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    if in_float:
        assert "these stay in float" in text
        assert found[0] in text
    else:
        assert "all of it is integer arithmetic" in text
