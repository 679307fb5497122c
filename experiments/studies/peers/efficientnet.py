"""A small network in the manner of EfficientNet for CIFAR-10, and how it is trained: 187,000 weights, 12 million MACs.

Inverted residuals with squeeze-and-excitation and SiLU, kernels of 3 and 5 (Tan and Le 2019, table 1), at a width and
depth that one core trains in some ten minutes.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from experiments.options.console import announcements
from quantenv.core.files import write_atomically
from quantenv.tasks import Split
from quantenv.training.augmentation import augment

#: Expansion, channels, blocks, first stride and kernel of each stage.
STAGES = ((1, 16, 1, 2, 3), (4, 24, 2, 1, 3), (4, 40, 2, 2, 5), (4, 64, 2, 1, 3), (4, 80, 1, 1, 5))
STEM, HEAD, CLASSES = 16, 256, 10
#: One cycle of SGD with Nesterov momentum (Smith and Topin 2019) on crops and mirror images, in bfloat16.
EPOCHS, BATCH, PEAK, MOMENTUM, WEIGHT_DECAY, RISE, CROP = 6, 128, 0.1, 0.9, 5e-4, 0.2, 4


class SqueezeExcitation(nn.Module):
    """Scales channels by what their means say (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, channels, H, W) to the same shape."""
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection, and a shortcut where shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        widen = _convolution(in_channels, middle, 1) if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            *_convolution(middle, middle, kernel, stride, groups=middle),
            SqueezeExcitation(middle, max(4, in_channels // 4)),
            nn.Conv2d(middle, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """Maps normalised images (B, 3, 32, 32) to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, STEM, 3))
        blocks, channels = [], STEM
        for expansion, out_channels, count, stride, kernel in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, out_channels, expansion, 1 if index else stride, kernel))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_convolution(channels, HEAD, 1))
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images (B, 3, 32, 32) to logits (B, 10)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.SiLU()]


def trained_weights(path: Path, train: Split) -> Path:
    """Returns a file of trained weights, a state dict; trains them first if there is none (ten minutes of one core).

    Args:
        path: Where they are kept.
        train: CIFAR-10's training images.
    """
    if not path.is_file():
        announcements().print(f"Training the EfficientNet-like network for {EPOCHS} epochs: ten minutes, once.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _trained(EfficientNet(), train)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(network.state_dict(), file))
    return path


def _in_float32(module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Runs a depthwise convolution in float32: strided or of 5 x 5, torch's in bfloat16 take 2 to 12 times as long."""
    with torch.autocast("cpu", enabled=False):
        return nn.Conv2d.forward(module, x.float()).to(x.dtype)


def _trained(network: nn.Module, train: Split) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and (module.stride[0] > 1 or module.kernel_size[0] > 3):
            module.forward = partial(_in_float32, module)  # type: ignore[method-assign]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, PEAK, MOMENTUM, nesterov=True)
    steps = len(train) // BATCH
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=EPOCHS * steps, pct_start=RISE, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(train), generator=generator)[: steps * BATCH]
        for indices in order.split(BATCH):
            images = augment(train.inputs[indices], CROP, True, generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), train.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval()
