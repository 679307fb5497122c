"""Small networks that hold every structure the walk and the quantizers must get right."""

import torch
from torch import nn

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.quantized import QuantizedNetwork

#: Quantized networks: simulated in float, and in integer arithmetic.
BACKENDS = [QuantizedNetwork, IntegerNetwork]


class Block(nn.Module):
    """Grouped and depthwise convolutions around a residual add, ReLU spelled as a method."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.grouped(x)).relu()
        return torch.relu(self.depthwise(y) + x)


class Branched(nn.Module):
    """Two layers share one input, a max pool moves values, an average pool makes new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(2)
        self.block = Block(8)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 6, (1, 3), padding=(0, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.maxpool(nn.functional.relu(self.stem_norm(self.stem(x)))))
        x = self.left(x) + self.right(x)
        return self.head(torch.flatten(self.pool(x), 1))


def branched(seed: int = 0) -> Branched:
    """Makes the network with batch-norm statistics that are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Branched()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return network.eval()
