"""Options of `train`, `finetune` and `validate`: the docstring under each field is its ``--help``."""

import math
from dataclasses import dataclass, field

from experiments.options.task_source import SourceOptions
from quantenv.core.typed import MOST_SEED, MOST_THREADS, MOST_WORKERS, Scalar, check_fields, require_within
from quantenv.envs.decisions import check_bit, check_bits
from quantenv.evaluation.pool.workers import check_pool
from quantenv.training.config import FinetuneConfig


@dataclass(frozen=True)
class TrainOptions(SourceOptions):
    """Searches for the bits of every layer with an agent and fine-tunes the best allocation found.

    Ends with a table on the test split that compares it with the best uniform allocation under the same budget.
    """

    preset: str | None = None
    """A named set of options, below those given: haq (HAQ as its paper describes it: weights under --metric size,
    weights and activations under latency, energy or bops) or haq-code (as its published code does it)."""
    task: str = "digits"
    """Network, weights and data to quantize; `quantenv tasks` lists them."""
    agent: str = "reinforce"
    """Who searches; `quantenv agents` lists them."""
    metric: str | list[str] = "size"
    """What the budget bounds: size, bops, latency, energy or memory; several as "size,latency"."""
    budget: float | str | list[float | str] | dict[str, float | str] = 0.4
    """Upper bound: a ratio of the cost at 8 bits, in (0, 1]; an absolute limit such as 18KiB, 3ms, 2mJ or 1.2GBOPs; or
    several as "size=0.4,latency=3ms", which replaces --metric."""
    evaluations: int = 500
    """Allocations that the agent may evaluate: one for each episode."""
    seed: int = 0
    """Fixes everything random in the search: same seed, same run."""
    device: str = "generic"
    """Whose costs count: a name from `quantenv devices`, or the path of a YAML file."""
    decisions: str = "weights"
    """What the agent decides: weights (activations stay at 8 bits), weights+activations (one after the other, as in
    HAQ), joint (both at once), or hierarchical (weights; with --channel_groups: first a layer's bits, then how they are
    spread over its groups)."""
    bits: list[int] | None = None
    """Bit-widths to choose from, 1-8, as [2,4,8]; by default 2 to 8, or those of a table task."""
    activation_bits: int = 8
    """Bits of all activations where only weights are decided, 1-8; pinned layers have their own."""
    observation: str = "full"
    """What the agent sees: haq, blog or full."""
    constraint: str = "mask"
    """How the budget is held: mask, project, reject or lagrangian."""
    constraint_options: dict[str, float] = field(default_factory=dict)
    """Options of the constraint, such as {infeasible_reward: -1} for reject."""
    reward: str = "accuracy"
    """accuracy, or weighted (accuracy less costs, see --reward_weights)."""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """Weights of accuracy and metrics for --reward weighted, as {accuracy: 1, latency: 0.1}."""
    pinned: str | dict[str, int] | None = None
    """Layers that are not decided: first_last (both at 8 bits), or bits by layer name as {classifier: 8}."""
    haq: dict[str, Scalar] = field(default_factory=dict)
    """Switches between HAQ's paper and its published code, such as {pins: over_budget}; the search is HAQ's where any
    is given, as --preset haq does. `quantenv.envs.haq.HAQSwitches` explains them."""
    evaluator: str = "ptq"
    """How an allocation's accuracy is measured while searching: ptq (post-training, in integer arithmetic
    unless the scheme has codebooks), ptq-integer, ptq-float (simulated), finetune (a short fine-tune), finetune-haq
    (one epoch by HAQ's recipe), or finetune-haq-train (the same, measured on the training images as in HAQ's code)."""
    scheme: str | None = None
    """How the task is quantized: linear or k-means (a codebook of weights for each layer), then any post-training
    steps (equalisation, absorption, adaround or brecq, bias, batch-norm), as linear+adaround+bias+batch-norm. By
    default the task's own; tasks that do not say otherwise have linear+bias+batch-norm."""
    store: str | None = None
    """Where evaluations are kept, so that no run computes one again: the path of an SQLite file, an SQLAlchemy URL
    (without a password: options are saved with the run) or off. By default $QUANTENV_STORE, or the user's own file."""
    agent_options: dict[str, Scalar] = field(default_factory=dict)
    """Options of the agent by name, as {learning_rate: 0.001}, over those of experiments/configs/agents/<agent>.yaml;
    `quantenv agents --agent NAME` lists them."""
    init_from: str | None = None
    """Folder of a finished run, of this or another task, whose trained agent goes on here. It must see as many features
    and choose among as many options: give the same --observation, --bits and agent options, and as many budgets.
    Off-policy agents begin with a warm-up all the same, unless {warmup_episodes: 0} is among their options."""
    top_k: int = 10
    """Best allocations to keep in top_k.json."""
    qat: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Fine-tuning recipe, the same for the found and the uniform allocation."""
    threads: int = 1
    """Threads of torch. Part of a run's identity: other counts can sum in another order. For networks as small as the
    digits task's, more than one is slower."""
    workers: int = 1
    """Workers that evaluate, for agents that ask for several evaluations at once; each has --threads threads of torch,
    so give at most as many as there are cores. No number depends on this and the next two: with --resume, give them
    anew."""
    pool: str = "processes"
    """What the workers are: processes on this machine, or ray: actors on a Ray cluster (quantenv[ray])."""
    ray_address: str | None = None
    """Ray cluster to join, as host:port; by default $RAY_ADDRESS, or a new one on this machine."""
    runs: str = "runs"
    """Folder in which runs are kept, as <task>/<agent>/<seed>-<time>."""
    resume: str | None = None
    """Folder of a run to continue. It has its own options, so no others can be given."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "evaluations", "top_k")
        require_within(self, 1, MOST_THREADS, "threads")
        require_within(self, 1, MOST_WORKERS, "workers")
        require_within(self, 0, MOST_SEED, "seed")
        check_pool(self.pool, self.ray_address)
        check_bit(self.activation_bits, "activation_bits")
        if self.bits is not None:
            check_bits(self.bits)


@dataclass(frozen=True)
class FinetuneOptions(SourceOptions):
    """Fine-tunes an allocation with quantization in the loop and reports it on the test split.

    On a run folder it uses the run's own recipe and repeats the found row of its final table.
    """

    run: str | None = None
    """Run folder whose best allocation and recipe to use."""
    allocation: str | None = None
    """Allocation file to fine-tune; with --run, instead of the run's best."""
    task: str | None = None
    """Task of the allocation; by default the one that the run or the file names."""
    scheme: str | None = None
    """Quantization scheme to start from, as for `quantenv train`; by default the one that the run or the file names."""
    qat: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Fine-tuning recipe; with --run, the run's unless given here."""
    threads: int = 1
    """Threads of torch; with --run, the run's unless given here."""
    output: str | None = None
    """Folder for finetune.json and finetuned.safetensors; by default ``finetune`` beside the allocation file."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, MOST_THREADS, "threads")


@dataclass(frozen=True)
class ValidateOptions:
    """Evaluates a run's recorded allocations again and compares every count, loss and cost exactly.

    Of a benchmark it computes the leaderboard again, looks every evaluation up again, and repeats one search of each
    row. Exits with code 1 and a list if anything differs.
    """

    folder: str
    """Folder of a run or of a benchmark."""
    sample: int = 20
    """Recorded episodes of a run to evaluate again, drawn at random, besides the best ones."""
    all: bool = False
    """Evaluate every recorded episode of a run again; repeat every search of a benchmark."""
    qat: bool = False
    """Repeat the fine-tuning of a run's final table, too."""
    seed: int = 0
    """Draws the sample, and the search of each row."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 0, MOST_SEED, "seed")
        require_within(self, 0, math.inf, "sample")
