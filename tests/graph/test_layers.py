import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.layers import describe
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched


def test_every_structure_is_described_by_name_and_shape():
    layers = {layer.name: layer for layer in describe(branched(), torch.randn(2, 3, 16, 16))}
    assert list(layers) == ["stem", "block.grouped", "block.depthwise", "left", "right", "head"]
    stem, grouped, depthwise, right, head = (
        layers[name] for name in ("stem", "block.grouped", "block.depthwise", "right", "head")
    )
    assert (stem.kind, stem.stride, stem.input_shape, stem.output_shape) == ("conv", (2, 2), (3, 16, 16), (8, 8, 8))
    assert (grouped.kind, grouped.groups, grouped.params) == ("conv", 2, 8 * 4 * 9)
    assert (depthwise.kind, depthwise.groups, depthwise.params) == ("depthwise", 8, 72)
    assert right.kernel_size == (1, 3)
    assert (head.kind, head.kernel_size, head.stride, head.input_shape, head.bias_params) == (
        "linear",
        (1, 1),
        (0, 0),
        (6,),
        5,
    )
    assert grouped.input_elements == math.prod((8, 4, 4))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_0", "regnet_y_400mf"])
def test_macs_agree_with_torchs_flop_counter(name):
    network = getattr(torchvision().models, name)(weights=None).eval()
    example = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    assert 2 * sum(layer.macs for layer in describe(network, example)) == counter.get_total_flops()


def test_params_are_the_weights_without_biases():
    network = branched()
    layers = describe(network, torch.randn(1, 3, 16, 16))
    modules = dict(network.named_modules())
    assert [layer.params for layer in layers] == [modules[layer.name].weight.numel() for layer in layers]


def test_describing_leaves_the_network_as_it_was():
    network = branched().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    describe(network, torch.randn(4, 3, 16, 16))
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_an_unsupported_layer_is_named():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GRUCell(4, 2)))
    with pytest.raises(UnsupportedLayerError, match=r"'1\.0' is a GRUCell"):
        describe(network, torch.randn(1, 4))


def test_nan_weights_are_refused_and_located():
    network = branched()
    network.block.grouped.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(UnsupportedLayerError, match=r"'block\.grouped'.*NaN"):
        describe(network, torch.randn(1, 3, 16, 16))


def test_a_network_without_layers_is_refused():
    with pytest.raises(UnsupportedLayerError, match="nothing to quantize"):
        describe(nn.ReLU(), torch.randn(1, 3))


def test_attention_is_described_by_its_projections():
    vit = torchvision().models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)
    layers = describe(vit, torch.randn(2, 3, 32, 32))
    block = "encoder.layers.encoder_layer_0"
    projections = [f"{block}.self_attention.{name}_proj" for name in ("q", "k", "v", "out")]
    assert [layer.name for layer in layers] == [
        "conv_proj",
        *projections,
        f"{block}.mlp.0",
        f"{block}.mlp.3",
        "heads.head",
    ]
    assert (layers[1].input_shape, layers[1].params, layers[1].macs) == ((5, 8), 64, 5 * 64)


def test_windows_count_for_their_image():
    swin = torchvision().models.SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=3)
    for batch in (1, 2):
        layers = {layer.name: layer for layer in describe(swin, torch.randn(batch, 3, 16, 16))}
        qkv = layers["features.1.0.attn.qkv"]
        assert (qkv.input_shape, qkv.macs) == ((4, 16, 8), 4 * 16 * 8 * 24)  # four windows of 16 tokens


class Loose(nn.Module):
    """Multiplies by a weight of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        return x @ self.weight.T


class Borrowing(nn.Module):
    """Multiplies by a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return nn.functional.linear(x, self.inner.weight)


def test_weights_that_functions_multiply_by_are_layers():
    network = nn.Sequential(nn.Linear(2, 2), Loose(), Borrowing())
    layers = describe(network, torch.randn(1, 2))
    assert [(layer.name, layer.kind, layer.params) for layer in layers] == [
        ("0", "linear", 4),
        ("1", "linear", 4),
        ("2.inner", "linear", 4),
    ]


def test_weights_that_no_layer_multiplies_by_are_refused():
    class Along(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            return nn.functional.bilinear(x, x, self.weight)

    with pytest.raises(UnsupportedLayerError, match=r"A weight of '1' \(Along\) is multiplied by in bilinear"):
        describe(nn.Sequential(nn.Linear(4, 4), Along()), torch.randn(1, 2, 4))


def test_modules_that_hide_their_layers_are_refused():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 1)

    class Decoding(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, x):
            return self.decoder(x, x)

    with pytest.raises(UnsupportedLayerError, match="'decoder' is a TransformerDecoder, which hides its layers"):
        describe(Decoding(), torch.randn(1, 3, 4))


def test_parameters_that_only_add_or_scale_are_no_layers():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x * self.scale + self.shift

    layers = describe(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), Scaled()), torch.randn(1, 2))
    assert [layer.name for layer in layers] == ["0"]


def test_networks_that_put_out_more_than_logits_are_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UnsupportedLayerError, match="puts out a tuple; expected one tensor of logits"):
        describe(nn.Sequential(nn.Linear(2, 2), Two()), torch.randn(1, 2))


def test_a_layer_may_get_its_input_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(input=x).mean((2, 3))

    (layer,) = describe(ByName(), torch.randn(2, 3, 8, 8))
    assert (layer.input_shape, layer.output_shape) == ((3, 8, 8), (4, 6, 6))


def test_a_network_that_does_not_run_says_on_what():
    class Two(nn.Sequential):
        def forward(self, x, mask):
            return super().forward(x) * mask

    with pytest.raises(UnsupportedLayerError, match=r"Two does not run .* 3,8,8: .*'mask'.* and nothing else"):
        describe(Two(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match=r"input of shape 3,8,8: .*expected input.* to have 5 channels"):
        describe(nn.Sequential(nn.Conv2d(5, 4, 3)), torch.randn(1, 3, 8, 8))


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):  # (B, tokens, features), which the layer reads with the tokens first
        return self.layer(x.transpose(0, 1)).mean(0)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
def test_one_sample_is_described_whatever_the_batch_and_wherever_it_lies(batch):
    (layer,) = describe(SequenceFirst().eval(), torch.randn(batch, 5, 6))
    assert layer.macs == 5 * 6 * 4
    assert (layer.input_elements, layer.output_elements) == (5 * 6, 5 * 4)
