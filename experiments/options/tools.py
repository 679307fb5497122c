"""Options of `prepare`, `enumerate`, `sensitivity`, `layers`, `report`, `pretrain`; importing them loads no torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from experiments.options.task_source import SourceOptions
from quantenv.core.allocation import MAX_BITS
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.typed import MOST_THREADS, MOST_WORKERS, Scalar, check_fields, require_within, short
from quantenv.evaluation.pool.workers import check_pool
from quantenv.sensitivity import Settings
from quantenv.training.pretrain_config import PretrainConfig

IMAGE_FOLDER = "imagefolder"


@dataclass(frozen=True)
class PrepareOptions(SourceOptions):
    """Prepares a task's network: integer weights, scales and biases, fixed once, with a hash that says which they are.

    Evaluating them is exact: the same file gives the same numbers on every machine. What ships, or was kept, is not
    made again.
    """

    task: str = "digits"
    """Task; `quantenv tasks` lists them."""
    scheme: str | None = None
    """Quantization scheme, as for `quantenv train`; by default the task's own."""
    output: str | None = None
    """File to write it to, for --prepared here or on another machine."""
    sensitivities: bool = False
    """Also measure the sensitivities that observations and `quantenv sensitivity` show, and put them into the file."""
    check: str | None = None
    """File of a prepared network to make again here: says whether the same numbers come out, and if not, in what they
    differ and by how much. Exits with code 1 if they do."""
    threads: int = 1
    """Threads of torch. Other counts can sum in another order."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, MOST_THREADS, "threads")
        if self.check is not None and (self.output is not None or self.sensitivities or self.prepared is not None):
            raise QuantenvError("--check only compares: leave --output, --sensitivities and --prepared out.")
        if self.sensitivities and self.output is None:
            raise QuantenvError("--sensitivities are measured for a file: name it by --output.")


@dataclass(frozen=True)
class EnumerateOptions(SourceOptions):
    """Evaluates every allocation of a task's weight bits on the search and the test split and writes a table.

    Allocations are walked depth first, so each layer runs once for each distinct prefix of decisions. Layers that the
    task ties get the same bits. Rows are kept in <output>.rows until the table is written: the same command goes on
    where an interrupted one ended.
    """

    task: str = "digits"
    """Task; `quantenv tasks` lists them."""
    bits: list[int] = field(default_factory=lambda: [2, 4, 6, 8])
    """Weight bits on offer, as 2,4,6,8."""
    activation_bits: int = 8
    """Bits of all activations."""
    backend: str = "auto"
    """Arithmetic: integer, float (its simulation), or auto: integer but for codebooks of k-means."""
    workers: int = os.cpu_count() or 1
    """Workers that evaluate, one thread each."""
    pool: str = "processes"
    """What workers are: processes on this machine, or ray: actors on a Ray cluster (quantenv[ray])."""
    ray_address: str | None = None
    """Ray cluster to join, as host:port; by default $RAY_ADDRESS, or a new one on this machine."""
    output: str | None = None
    """File of the table; <task>.npz by default."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, MOST_WORKERS, "workers")
        check_pool(self.pool, self.ray_address)


@dataclass(frozen=True)
class SensitivityOptions(SourceOptions):
    """Measures how much each layer alone harms a network at each bit-width, on the search split.

    One layer's weights, or its input activations, deviate from 8 bits everywhere. What was measured is kept in one file
    per network, data, scheme and settings, and measured again when any of them changes; an interrupted measurement
    goes on where it ended.
    """

    task: str = "digits"
    """Task, or table of one; `quantenv tasks` lists them."""
    kind: str | None = None
    """accuracy, loss, kl, sqnr, fisher, fisher-output, hessian, or all; kl if left out, for tables loss."""
    bits: list[int] = field(default_factory=lambda: list(range(1, 9)))
    """Weight bits that are measured, as 2,4,8."""
    activation_bits: list[int] = field(default_factory=lambda: list(range(1, 9)))
    """Activation bits that are measured; 8 alone measures none, for harm is relative to 8 bits."""
    images: int | None = Settings.images
    """Samples of the search split for accuracy, loss, kl and sqnr, the first ones; null is all."""
    gradient_images: int = Settings.gradient_images
    """Samples of the search split for fisher, fisher-output and hessian."""
    relative_error: float = Settings.relative_error
    """Standard error of a Hessian trace, as a share of its size, that ends its probing."""
    probes: int = Settings.probes
    """Probes at most for one trace."""
    seed: int = Settings.seed
    """Seed of the probes."""
    threads: int = 1
    """Threads of torch."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, MOST_THREADS, "threads")
        for name in ("bits", "activation_bits"):
            if not all(1 <= each <= MAX_BITS for each in getattr(self, name)):
                raise QuantenvError(
                    f"--{name} is {getattr(self, name)}; expected whole numbers from 1 to {MAX_BITS}, such as 2,4,8."
                )

    @property
    def settings(self) -> Settings:
        """How a network is measured."""
        return Settings(self.images, self.gradient_images, self.relative_error, self.probes, self.seed)


@dataclass(frozen=True)
class LayersOptions:
    """Lists the quantizable layers of a network in the order in which they run, with random weights unless given.

    The network is also traced, so what this lists can be quantized, and products of two activations are listed, too.
    """

    model: str | None = None
    """torchvision:NAME, a classification network of torchvision; or module:function, a function of yours that returns
    the network."""
    input: str = "3,224,224"
    """Shape of one input: channels,height,width."""
    model_arguments: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Arguments of the network's constructor, as {num_classes: 10}."""
    json: bool = False
    """Print JSON instead of a table: all that is known of each layer, stored tensor and product."""

    def __post_init__(self) -> None:
        check_fields(self, "--")


@dataclass(frozen=True)
class ReportOptions:
    """Draws runs and benchmarks: Pareto fronts, anytime curves, bits by layer, patterns, leaderboards, and a verdict.

    Writes one HTML page that needs no network, and every figure as a PNG beside it.
    """

    folders: list[str]
    """Folders of runs and of benchmarks, any number of either."""
    output: str = "report.html"
    """The page; its pictures are called as it is, with their names behind."""
    measure: bool = True
    """Whether networks may be evaluated for what folders do not hold: uniform allocations, answers of the proxy,
    sensitivities. Seconds for small networks, minutes for others, and never twice: results are kept. Tables need
    none."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        if Path(self.output).suffix.lower() not in (".html", ".htm"):
            raise QuantenvError(f"--output is {short(self.output)}; expected the path of a page, such as report.html.")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(PretrainConfig, SourceOptions):
    """Trains a float network from scratch, for a task to use: SGD with Nesterov momentum under a cosine.

    A checkpoint is kept after every epoch; training goes on from it to the same weights as without interruption.
    """

    task: str = "cifar10"
    """cifar10, cifar100, fashionmnist, mnist or imagefolder; --data and --model say more, --weights has no meaning.
    An imagefolder may have any network; quantenv.tasks.networks.cifar:resnet32, for one, is for small images."""
    output: str | None = None
    """File of the trained weights, written when training has ended; by default where the task looks for them. Task
    imagefolder looks nowhere: give it this file as --weights."""
    threads: int = 1
    """Threads of torch. Other counts can sum in another order."""
    runs: str = "runs"
    """Folder in which trainings are kept, as <task>/pretrain/<model>-<seed>-<time>: options, checkpoint, curves."""
    resume: str | None = None
    """Folder of a training to continue. It has its own options, so no others can be given, but for --processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, 1, MOST_THREADS, "threads")
        from quantenv.tasks.small_images import DATA_SETS  # torch: not for --help

        if self.task not in (*DATA_SETS, IMAGE_FOLDER):
            raise unknown_name("task to pretrain:", self.task, (*DATA_SETS, IMAGE_FOLDER))
        if self.weights is not None:
            raise QuantenvError("`quantenv pretrain` trains from scratch: leave --weights out.")
        if self.task == IMAGE_FOLDER and self.output is None and self.resume is None:
            raise QuantenvError("--task imagefolder needs --output, the file for the trained weights.")
