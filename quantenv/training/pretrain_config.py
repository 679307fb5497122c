"""The recipe of a training from scratch; importing it loads no torch."""

import math
from dataclasses import dataclass

from quantenv.core.errors import unknown_name
from quantenv.core.typed import MOST_SEED, MOST_WORKERS, check_fields, require_within
from quantenv.training.compute import DEVICES, check_divides


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """SGD with Nesterov momentum under a cosine, on randomly cropped and flipped images."""

    epochs: int = 160
    """Passes over the training images."""
    batch_size: int = 128
    """Images of one step; the last, smaller batch of an epoch is dropped."""
    learning_rate: float = 0.1
    """Of the first step; decays to 0 by a cosine."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """Decay of the weights; biases and batch norms have none."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes; 0 to 1."""
    crop_padding: int = 4
    """Pixels around each image, of the mean colour, within which it is moved at random; 0 leaves it in its place."""
    flip: bool | None = None
    """Whether every other image is mirrored left to right, at random; by default where it means the same then."""
    bf16: bool = False
    """Multiply in bfloat16; weights stay in float32. Faster where the hardware has it."""
    compute: str = "cpu"
    """Where it trains: cpu or cuda. The same seed gives the same weights to the bit on a CPU only."""
    processes: int = 1
    """Processes that train together (quantenv[accelerate]), each on its share of every batch: with --compute cuda, one
    for each GPU. Batch norms see the whole batch; weights differ from one process's in their last digits only."""
    seed: int = 0
    """Of initial weights, order of images, crops and flips."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "epochs")
        require_within(self, 2, math.inf, "batch_size")
        require_within(self, 0.0, math.inf, "learning_rate", "weight_decay")
        require_within(self, 0.0, 1.0, "momentum", "label_smoothing")
        require_within(self, 0, math.inf, "crop_padding")
        require_within(self, 1, MOST_WORKERS, "processes")
        require_within(self, 0, MOST_SEED, "seed")
        if self.compute not in DEVICES:
            raise unknown_name("device to train on", self.compute, DEVICES)
        check_divides(self.processes, self.batch_size)
