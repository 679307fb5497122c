"""Every network that quantenv promises to take unmodified, with random weights and small images."""

import importlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.prefix import PrefixRunner
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.graph.layers import describe
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.switched import SwitchedLayer
from quantenv.tasks.networks.vision import torchvision

#: Arguments and quantizable layers, counted by hand from each network's table.
NETWORKS = {
    "resnet18": ({}, 21),
    "resnet50": ({}, 54),
    "mobilenet_v2": ({}, 53),
    "mobilenet_v3_small": ({}, 54),
    "efficientnet_b0": ({}, 82),
    "shufflenet_v2_x1_0": ({}, 57),
    "densenet121": ({}, 121),
    "vgg11_bn": ({}, 11),
    "squeezenet1_0": ({}, 26),
    "googlenet": ({"init_weights": False}, 58),
    "regnet_y_400mf": ({}, 86),
    "convnext_tiny": ({}, 59),
    "vit_b_16": ({"image_size": 32}, 1 + 12 * 6 + 1),
    "swin_t": ({}, 1 + 12 * 4 + 3 + 1),
}
#: Kept as it is initialised: with signals of equal size its random weights turn 1% of noise into 5%.
FADING = "efficientnet_b0"
#: Those that are also run in integers and with shared prefixes: every structure, little arithmetic.
SMALL = {
    "squeezenet1_0": lambda: random_network("squeezenet1_0"),
    "shufflenet_v2_x1_0": lambda: random_network("shufflenet_v2_x1_0"),
    "mobilenet_v3_small": lambda: random_network("mobilenet_v3_small"),
    "a small vit": lambda: small("VisionTransformer", 32, 8, 1, 2, 16, 32),
    "a small swin": lambda: small("SwinTransformer", [2, 2], 16, [2, 1], [2, 4], [7, 7]),
    "a small swin v2": lambda: small_swin_v2(),
    "a small convnext": lambda: small("ConvNeXt", None, num_classes=5),
}
#: Those of which most weights are of the same few layers, with fewer of them: what is left has every layer.
NARROW = {"vgg11_bn": lambda name: narrow_vgg(name), "vit_b_16": lambda name, **size: narrow_vit(**size)}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def coarse_ranges(monkeypatch):
    """Ranges by largest value and on few samples: how they are searched is tested elsewhere, and takes minutes here."""
    ranges = importlib.import_module("quantenv.quantization.ranges")
    monkeypatch.setattr(ranges, "RATIOS", torch.tensor([1.0]))
    monkeypatch.setattr(ranges, "END_RATIOS", ranges.END_RATIOS[-13:])  # both ends whole, or one of them clipped
    monkeypatch.setattr(ranges, "COARSE_RATIOS", torch.tensor([1.0]))
    monkeypatch.setattr(ranges, "REFINEMENTS", torch.zeros(0))
    monkeypatch.setattr(ranges, "MAX_SAMPLES", 1 << 13)


def named(name: str, **arguments) -> nn.Module:
    return getattr(torchvision().models, name)(weights=None, num_classes=10, **arguments)


def narrow_vgg(name: str) -> nn.Module:
    with torch.device("meta"):
        network = named(name)
    network.classifier[0], network.classifier[3] = nn.Linear(512 * 7 * 7, 64), nn.Linear(64, 64)
    network.classifier[6] = nn.Linear(64, 10)
    network.features.to_empty(device="cpu")
    for module in network.features:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def narrow_vit(**arguments) -> nn.Module:
    return torchvision().models.VisionTransformer(
        patch_size=16, num_layers=12, num_heads=12, hidden_dim=192, mlp_dim=768, num_classes=10, **arguments
    )


def random_network(name: str) -> nn.Module:
    """Makes a network whose every part matters: no signal fades, and nothing is multiplied by zero."""
    arguments, _ = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NARROW.get(name, named)(name, **arguments).eval()
        for key, parameter in network.named_parameters():
            if "layer_scale" in key or "class_token" in key:
                nn.init.normal_(parameter, 0.5, 0.1)  # as large as what they scale and stand beside
            elif parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)

    def rescale(norm, arguments):
        norm.running_var.fill_(arguments[0].square().mean())  # of all channels: some are tiny by chance

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(rescale) for norm in norms if name != FADING]
    with torch.no_grad():
        network(IMAGES)
    for hook in hooks:
        hook.remove()
    return network


def small(kind: str, *arguments, **options) -> nn.Module:
    models = torchvision().models
    if kind == "ConvNeXt":
        arguments = ([models.convnext.CNBlockConfig(16, 24, 1), models.convnext.CNBlockConfig(24, None, 1)],)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(models, kind)(*arguments, **options).eval()
        for parameter in network.parameters():
            if not parameter.any() or parameter.max() < 1e-3:
                nn.init.normal_(parameter, 0.5, 0.1)
    return network


def small_swin_v2() -> nn.Module:
    swin = torchvision().models.swin_transformer
    parts = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return small("SwinTransformer", [2, 2], 16, [2, 1], [2, 4], [7, 7], **parts)


def counted_macs(network: nn.Module) -> int:
    """Counts by dispatched operations; products of two activations, which have no weights, are left out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation, which the counter does not know
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(IMAGES[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operation, flops in counts.items() if str(operation) not in ("aten.bmm", "aten.baddbmm")) // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_described_and_quantized_unmodified(name):
    network = random_network(name)
    with torch.no_grad():
        expected = network(IMAGES)
    layers = describe(network, IMAGES)
    assert len(layers) == NETWORKS[name][1]
    assert sum(layer.macs for layer in layers) == counted_macs(network)

    calibration = calibrate(network, IMAGES)
    with torch.no_grad():
        assert (calibration.graph(IMAGES) - expected).norm() < 1e-3 * expected.norm()
    quantized = QuantizedNetwork(calibration)
    read, wrote = {}, {}

    def record(layer, arguments, output):
        read[layer.indices[0]], wrote[layer.indices[0]] = arguments[0], output

    modules = {module.indices[0]: module for module in quantized.module.modules() if isinstance(module, SwitchedLayer)}
    hooks = [module.register_forward_hook(record) for module in modules.values()]
    assert (quantized(IMAGES) - expected).norm() < 0.15 * expected.norm()
    for hook in hooks:
        hook.remove()
    assert sorted(modules) == sorted(read) == list(range(len(layers)))

    for index, module in modules.items():
        bits = [2 if i == index else 8 for i in range(len(layers))]
        with torch.inference_mode():
            quantized.select(Allocation.make(layers, bits, 8))
            assert not torch.equal(module(read[index]), wrote[index]), (layers[index].name, "weights")
            quantized.select(Allocation.make(layers, 8, bits))
            assert not torch.equal(module(module.source(read[index])), wrote[index]), (layers[index].name, "inputs")
            others = [other for other in modules.values() if other is not module]
            assert all(other.weight is other.cache[8][0] and other.input_grid is None for other in others)


@pytest.mark.parametrize("name", SMALL)
def test_backends_and_shared_prefixes_agree(name):
    calibration = calibrate(SMALL[name](), IMAGES)
    layers = calibration.layers
    half = len(layers) // 2
    allocations = [Allocation.make(layers, [8] * half + [bits] * (len(layers) - half), 8) for bits in (8, 4)]
    networks = [QuantizedNetwork(calibration), IntegerNetwork(calibration)]
    outputs = []
    for network in networks:
        settings = network.settings(allocations)
        shared = [output.clone() for output in PrefixRunner(network).run(IMAGES, settings)]
        for allocation, output in zip(allocations, shared, strict=True):
            network.select(allocation)
            assert torch.equal(network(IMAGES), output)
        outputs.append(shared[0])
    assert (outputs[-1] - outputs[0]).norm() < 0.15 * outputs[0].norm()
