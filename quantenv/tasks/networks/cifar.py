"""Networks for images of about 32 x 32 pixels: the CIFAR ResNets, and MobileNetV2 with fewer strides."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.tasks.networks.vision import torchvision
from quantenv.tasks.resnet20 import BasicBlock

#: MobileNetV2's expansion, channels, blocks and stride of each stage (Sandler et al. 2018, table 2), but a stride of 1
#: in the second one. With that of the stem, 32 x 32 images are halved three times instead of five.
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class CifarResNet(nn.Module):
    """A CIFAR ResNet of 6 n + 2 layers (He et al. 2016, section 4.2); weights are named as those of `ResNet20`."""

    def __init__(self, depth: int, channels: int = 3, classes: int = 10) -> None:
        """Makes the network with random weights: He et al. 2015 for convolutions.

        Args:
            depth: Layers, 6 n + 2.
            channels: Of the images.
            classes: Outputs.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images (B, channels, H, W) to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet20(channels: int = 3, classes: int = 10) -> nn.Module:
    """Makes a CIFAR ResNet of 20 layers; see `CifarResNet`."""
    return CifarResNet(20, channels, classes)


def resnet32(channels: int = 3, classes: int = 10) -> nn.Module:
    """Makes a CIFAR ResNet of 32 layers; see `CifarResNet`."""
    return CifarResNet(32, channels, classes)


def resnet56(channels: int = 3, classes: int = 10) -> nn.Module:
    """Makes a CIFAR ResNet of 56 layers; see `CifarResNet`."""
    return CifarResNet(56, channels, classes)


def mobilenet_v2(channels: int = 3, classes: int = 10) -> nn.Module:
    """Makes MobileNetV2 with fewer strides; see `MOBILENET_STAGES`."""
    stages = [list(stage) for stage in MOBILENET_STAGES]
    network: nn.Module = torchvision().models.MobileNetV2(classes, inverted_residual_setting=stages)
    stem = nn.Conv2d(channels, 32, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    network.get_submodule("features.0").register_module("0", stem)
    return network


#: The networks by name.
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "mobilenet_v2": mobilenet_v2,
}


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels), *rest)
