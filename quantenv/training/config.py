"""The recipe of a quantization-aware fine-tuning."""

import math
from dataclasses import asdict, dataclass, fields

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.typed import MOST_SEED, MOST_WORKERS, check_fields, require_within
from quantenv.training.compute import DEVICES, check_divides

#: What to compile.
COMPILE = (NEVER, AUTO, QUANTIZERS, NETWORK) = ("never", "auto", "quantizers", "network")
#: Names of `quantenv.training.qat.quantizers`'s quantizers, which are not imported for them: options need no torch.
WEIGHT_QUANTIZERS = ("lsq", "linear", "mid-rise", "dorefa", "k-means")
ACTIVATION_QUANTIZERS = ("lsq", "linear", "dorefa", "pact", "lsq+")
#: Where batch norms are while training.
NORMS = (FOLDED, LIVE) = ("folded", "live")
#: Stands before a field's name in messages.
BEFORE = "Fine-tuning's "
#: Fields of a recipe that were there when evaluations were first stored: part of every identity. Those that came
#: later are left out at the values that they came with.
_FIRST = (
    "epochs",
    "batch_size",
    "learning_rate",
    "step_learning_rate",
    "momentum",
    "weight_decay",
    "distillation",
    "seed",
)


@dataclass(frozen=True)
class FinetuneConfig:
    """Recipe of quantization-aware fine-tuning: trained quantizers, SGD, cosine schedule."""

    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 32
    """Samples of one step; the last, smaller batch of an epoch is dropped."""
    learning_rate: float = 0.005
    """Initial learning rate of weights and biases; decays to 0 by a cosine."""
    step_learning_rate: float = 0.1
    """Learning rate of the quantizers' steps as a fraction of `learning_rate`. LSQ's own 1 makes networks as small as
    the digits task's unstable: some allocations then ended below where they started."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Decay of the weights; biases and steps have none."""
    clip: float = 0.0
    """Norm that the gradient of a step is scaled down to if it is larger (Pascanu et al. 2013); 0 for none. With folded
    batch norms, deep networks diverge at useful learning rates without it: try 0.5."""
    distillation: float = 0.5
    """Share of the loss that is the divergence from the float network's outputs (Hinton et al. 2015); 0 to 1."""
    seed: int = 0
    """Seed of the order of the training samples, and of their augmentation."""
    weight_quantizer: str | None = None
    """Rounds weights in training: lsq (learned steps), mid-rise (learned steps, and 4 levels of 2 bits where lsq has
    3), linear (constant steps), dorefa or k-means (fine-tuned centroids). By default lsq, or k-means where the scheme
    is."""
    activation_quantizer: str = "lsq"
    """Rounds activations in training: lsq, lsq+ (learned offsets, too), pact (learned clipping), linear or dorefa (both
    constant)."""
    compile: str = NEVER
    """What is compiled of a training step with LSQ: never anything, its quantizers (in some ten seconds), the whole
    network (in most of a minute, for longer runs), or auto: what saves most beyond the time that compiling takes.
    Results differ in their last digits; other bits compile nothing anew."""
    bf16: bool = False
    """Computes convolutions and matrix products in bfloat16 while training; quantizers, losses and evaluations stay in
    float32. Pays on processors with bfloat16 instructions; on others a step takes 2.5 times as long."""
    ema: float = 0.0
    """Decay by step of an exponential moving average of what is trained, such as 0.999, which is then what is evaluated
    and kept; 0 for none."""
    crop: int = 0
    """Zero pixels around images of which a random window is trained on, such as 4 for 32x32 images; 0 for none."""
    flip: bool = False
    """Mirrors half of the images, at random."""
    norms: str | None = None
    """Where the batch norms of convolutions are while training: live behind the weights, with the statistics of every
    batch, and folded in the end: what is deployed is the same arithmetic; or folded from the start, with which deep
    networks diverge without `clip`, and others end lower. By default live, but folded for k-means, whose codebook a
    norm cannot be folded into. With live ones deep networks learn at float training's rates, such as 0.04."""
    choose_from: int = 0
    """First epoch that the best one on the search split is chosen from; 0 is the network before training. More than 0
    where the float network has seen the search split: before training it would seem better than it is."""
    batch_norm: bool = False
    """Estimates the statistics of the folded batch norms again at the end, on the calibration split, and keeps them if
    the search split agrees."""
    compute: str = "cpu"
    """Where it trains: cpu, or cuda, which gives other last digits. Evaluations are made on the CPU."""
    processes: int = 1
    """Processes that train together (quantenv[accelerate]), each on its share of every batch: with compute cuda, one
    for each GPU. Results differ from one process's in their last digits only."""

    def __post_init__(self) -> None:
        check_fields(self, BEFORE)
        require_within(self, 0, math.inf, "epochs", "crop", before=BEFORE)
        require_within(self, 1, math.inf, "batch_size", before=BEFORE)
        rates = ("learning_rate", "step_learning_rate", "weight_decay", "clip")
        require_within(self, 0.0, math.inf, *rates, before=BEFORE)
        require_within(self, 0.0, 1.0, "momentum", "distillation", "ema", before=BEFORE)
        require_within(self, 0, self.epochs, "choose_from", before=BEFORE)
        require_within(self, 0, MOST_SEED, "seed", before=BEFORE)
        require_within(self, 1, MOST_WORKERS, "processes", before=BEFORE)
        if self.ema == 1:
            raise QuantenvError("Fine-tuning's ema is 1, which would never move; expected less, such as 0.999.")
        if self.compile not in COMPILE:
            raise unknown_name("choice of what to compile", self.compile, COMPILE)
        if self.norms is not None and self.norms not in NORMS:
            raise unknown_name("place of batch norms", self.norms, NORMS)
        if self.compute not in DEVICES:
            raise unknown_name("device to train on", self.compute, DEVICES)
        check_divides(self.processes, self.batch_size)
        if self.weight_quantizer is not None and self.weight_quantizer not in WEIGHT_QUANTIZERS:
            raise unknown_name("quantizer of weights", self.weight_quantizer, WEIGHT_QUANTIZERS)
        if self.activation_quantizer not in ACTIVATION_QUANTIZERS:
            raise unknown_name("quantizer of activations", self.activation_quantizer, ACTIVATION_QUANTIZERS)

    @property
    def augmented(self) -> bool:
        """Whether a network sees other images in every epoch."""
        return self.crop > 0 or self.flip

    @property
    def identity(self) -> str:
        """What of an evaluation's numbers the recipe fixes."""
        default = {field.name: field.default for field in fields(self)} | {"norms": FOLDED}
        return str({k: v for k, v in asdict(self).items() if k in _FIRST or v != default[k]})
