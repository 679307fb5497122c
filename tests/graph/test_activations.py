import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quantenv.graph.activations import find_activations
from quantenv.graph.layers import describe
from quantenv.graph.plain_network import plain_network
from quantenv.quantization.calibrating import calibrate
from quantenv.tasks.digits import DigitsNet
from quantenv.tasks.networks.vision import torchvision


class Residual(nn.Module):
    """relu(second(relu(first(x))) + shortcut(x)), pooled and classified: both layers of the block read the stem's."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1, 2)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))
        return self.classifier(F.max_pool2d(y, 4).flatten(1))


def test_a_residual_block_by_hand():
    found = find_activations(Residual().eval(), torch.randn(2, 3, 8, 8)).tensors
    expected = [  # elements, layers, shared, reads, written, charged to, first, last
        (192, ("stem",), False, 192, False, "stem", 0, 1),
        (256, ("first", "shortcut"), False, 512, True, "stem", 1, 4),
        (128, ("second",), False, 128, True, "first", 2, 3),
        (128, (), True, 128, True, "second", 3, 5),
        (128, (), True, 128, True, "shortcut", 4, 5),
        (128, ("classifier",), False, 128, True, "shortcut", 5, 6),  # the pool reads all of it, fused into the layer
    ]
    fields = ("elements", "layers", "shared", "reads", "written", "charged_to", "first", "last")
    assert [tuple(getattr(tensor, field) for field in fields) for tensor in found] == expected


class Parts(nn.Module):
    """One layer makes queries, keys and values; the first token is classified."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((torch.softmax(q @ k.transpose(1, 2), -1) @ v)[:, 0])


def test_what_takes_a_part_reads_that_part_and_lives_until_what_is_made_of_it_is_written():
    found = find_activations(Parts().eval(), torch.randn(2, 5, 8))
    read, qkv, shares, mixed = found.tensors
    assert (qkv.elements, qkv.reads, qkv.shared) == (120, 120, True)
    assert (shares.elements, shares.reads) == (25, 25)
    assert (mixed.elements, mixed.reads, mixed.layers, mixed.shared) == (40, 8, ("out",), False)
    assert (qkv.first, qkv.last) == (1, 3)  # the values until they are weighted; the scores are no tensor
    assert [(product.macs, product.charged_to) for product in found.products] == [(200, "qkv"), (200, "qkv")]
    assert read.reads == 40


@pytest.mark.parametrize(("make", "shape"), [(Residual, (3, 8, 8)), (Parts, (5, 8)), (DigitsNet, (1, 8, 8))])
def test_tensors_are_the_places_where_calibration_measures(make, shape):
    torch.manual_seed(0)
    network, inputs = make().eval(), torch.randn(4, *shape)
    tensors = find_activations(network, inputs).tensors
    sites = calibrate(network, inputs).sites
    assert [(t.name, t.layers, t.shared, t.elements) for t in tensors] == [
        (s.node, s.layers, s.shared, s.features) for s in sites
    ]


class Products(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.layer, self.product = nn.Linear(8, 8), product

    def forward(self, x):
        y = self.layer(x)
        return self.product(y, torch.tanh(y)).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("product", "macs"),
    [
        (lambda a, b: a @ b.transpose(1, 2), 6 * 6 * 8),
        (lambda a, b: torch.bmm(a, b.mT), 6 * 6 * 8),
        (lambda a, b: a.matmul(b.mT), 6 * 6 * 8),
        (lambda a, b: torch.einsum("bid,bjd->bij", a, b), 6 * 6 * 8),
        (lambda a, b: torch.einsum("... i d, ... j d -> ... i j", a, b), 6 * 6 * 8),
        (lambda a, b: torch.baddbmm(a[:, :, :6], a, b.mT), 6 * 6 * 8),
        (lambda a, b: F.scaled_dot_product_attention(a[:, None], b[:, None], a[:, None]), 2 * 6 * 6 * 8),
    ],
)
def test_products_count_as_torch_s_counter_says(product, macs):
    network, x = Products(product).eval(), torch.randn(3, 6, 8)
    assert find_activations(network, x).macs == macs
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # others are unknown
        network(x)
    assert counter.get_total_flops() == 2 * 3 * (macs + 6 * 8 * 8)


def small_vision_transformer():
    return torchvision().models.VisionTransformer(32, 16, 2, 4, 32, 64)


def small_swin(version):
    module = torchvision().models.swin_transformer
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    if version == 2:
        blocks = {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
        return module.SwinTransformer(**sizes, **blocks)
    return module.SwinTransformer(**sizes)


def small_maxvit():
    sizes = {"input_size": (32, 32), "stem_channels": 8, "partition_size": 2, "head_dim": 8}
    return torchvision().models.maxvit.MaxVit(
        **sizes, block_channels=[8, 16], block_layers=[1, 2], stochastic_depth_prob=0.0
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision().models.resnet18(num_classes=10),
        lambda: torchvision().models.mobilenet_v2(num_classes=10),
        small_vision_transformer,
        lambda: small_swin(1),
        lambda: small_swin(2),
        small_maxvit,
    ],
)
def test_layers_and_products_are_all_multiplications_that_torch_counts(make):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    # The plain form: torch's fused attention is not counted, and swin's biases of the second version are made once.
    network = plain_network(make().eval(), x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    macs = sum(layer.macs for layer in describe(network, x)) + find_activations(network, x).macs
    assert counter.get_total_flops() == 2 * macs
