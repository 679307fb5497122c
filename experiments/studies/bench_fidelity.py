"""Benchmark: does a cheap reward rank allocations as full quantization-aware training does?

`make bench-fidelity` runs it on the digits task. Different allocations at one size budget are evaluated by each cheap
reward on the search split, and trained by the full recipe with several seeds; Spearman's rank correlation of each
reward with the mean test accuracy after that, and what each costs. Other tasks need a recipe that suits them; on
ResNet-20 fine-tuning takes an hour of two cores even if it is short, so that no result of it is recorded:

    python -m experiments.studies.bench_fidelity --task resnet20 --activation_bits 4 --train_images 10000 --allocations
    12
        --seeds 2 --rewards '["ptq", "ptq, batch-norm", "finetune-haq, 1 epoch"]' --qat.epochs 2 --qat.batch_size 128
        --qat.learning_rate 0.04 --qat.step_learning_rate 1.0 --qat.weight_quantizer mid-rise --qat.norms live
        --qat.compile network --qat.crop 4 --qat.flip true

A benchmark that was stopped goes on where it was. Results of other tasks and budgets in the JSON file are kept.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from experiments.leaderboard.statistics import bootstrap
from experiments.options.parsing import parse_options
from experiments.studies.fidelity import (
    REWARDS,
    Measured,
    Trained,
    draw_allocations,
    journal_of,
    measure_reward,
    reduced,
    train_all,
)
from experiments.studies.harness import circumstances, read_cases, write_cases
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.hardware import CostTable, compile_costs, load_device, parse_budgets
from quantenv.tasks import get_task
from quantenv.tasks.activations import activations_of
from quantenv.training import FinetuneConfig

NAME = "bench_fidelity"
#: The reward that the others are compared with: the environment's default.
DEFAULT = "ptq: accuracy"
#: A reward that looks at no image: the mean of the weight bits.
MEAN_BITS = "mean bits"


@dataclass(frozen=True)
class FidelityOptions:
    """Correlates cheap rewards of allocations at one size budget with their accuracy after full training."""

    task: str = "digits"
    """Task."""
    budget: str = "0.3"
    """Size budget: a ratio of the size at 8 bits, or with a unit. Small ones spread the accuracies after training."""
    bits: list[int] = field(default_factory=lambda: [2, 3, 4, 5, 6, 7, 8])
    """Weight bits on offer."""
    activation_bits: int = 8
    """Bits of all activations."""
    allocations: int = 24
    """Different allocations; the largest uniform one within the budget is the first."""
    rewards: list[str] = field(default_factory=lambda: list(REWARDS))
    """Cheap rewards to compare, the default one ("ptq") among them."""
    seeds: int = 3
    """Runs of the full recipe for each allocation, with seeds from --qat.seed."""
    train_images: int | None = None
    """Training images at most, drawn by a fixed permutation; all by default."""
    images: int | None = None
    """Images of the search split, which rewards are measured on, at most."""
    test_images: int | None = None
    """Images of the test split, which trained allocations are ranked on, at most."""
    qat: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The full recipe; see `quantenv finetune --help`."""
    resamples: int = 2000
    """Bootstrap resamples of the allocations, for the 95% intervals."""
    seed: int = 0
    """Seed of allocations and resamples."""
    workers: int = 2
    """Processes that run the full recipe."""
    threads: int = 1
    """Threads of torch in each process."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        if self.allocations < 3 or self.seeds < 2:
            raise QuantenvError("--allocations must be at least 3 and --seeds at least 2: there is nothing to rank.")
        if min(self.workers, self.threads, self.resamples) < 1:
            raise QuantenvError("--workers, --threads and --resamples must be at least 1.")
        for name in self.rewards:
            if name not in REWARDS:
                raise unknown_name("reward", name, REWARDS)
        if DEFAULT.partition(":")[0] not in self.rewards:
            raise QuantenvError("--rewards lacks ptq, which the others are compared with.")


@dataclass(frozen=True)
class Fidelity:
    """How one reward ranks the allocations."""

    reward: str
    """What is measured: a name of `REWARDS`, and accuracy or loss; or `MEAN_BITS`."""
    spearman: tuple[float, float, float]
    """Rank correlation with the test accuracy after the full recipe, mean over its seeds, and the ends of its 95%
    bootstrap interval over the allocations. Loss counts negatively: more is better in every row."""
    difference: tuple[float, float, float]
    """The same of the correlation less that of `DEFAULT`, over the same resamples."""
    spearman_loss: float
    """Rank correlation with the negative test loss after the full recipe."""
    favourite: float
    """Test accuracy after the full recipe of the allocation that the reward likes best; mean of those that tie."""
    seconds: float
    """Processor seconds of one evaluation, the median over the allocations."""


@dataclass(frozen=True)
class Ceiling:
    """How repeatable the full recipe itself is."""

    between_seeds: float
    """Rank correlation of the test accuracies of two seeds, the mean over pairs."""
    reliability: float
    """Of the mean over all seeds (Spearman 1910, Brown 1910): k r / (1 + (k - 1) r)."""
    highest: float
    """Its square root: what a reward that knew each allocation's expected test accuracy would correlate with the mean
    at most (Spearman 1904), up to chance."""
    search: float
    """Rank correlation of accuracies on the search and the test split, both of the full recipe, means over seeds."""
    seed_deviation: float
    """Standard deviation of the test accuracy between seeds, pooled over allocations."""
    seconds: float
    """Processor seconds of one run, the median."""


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, missing data of the task, or damaged results of an earlier run.
    """
    options = parse_options(FidelityOptions, NAME, arguments)
    read_cases(NAME, options.output)  # a damaged file is better known now than in the end
    torch.set_num_threads(options.threads)
    task = reduced(get_task(options.task), train=options.train_images, search=options.images, test=options.test_images)
    codebooks = task.scheme.startswith("k-means")
    tables = compile_costs(task.layers, activations_of(task), load_device("generic"), codebooks)
    sizes = tables["size"]
    assert isinstance(sizes, CostTable)
    (budget,) = parse_budgets("size", options.budget, tables)
    allocations = draw_allocations(
        task,
        sizes,
        budget,
        options.bits,
        options.activation_bits,
        options.allocations,
        options.seed,
    )
    journal = journal_of(task)
    rewards = {name: measure_reward(name, task, allocations, options.bits, journal) for name in options.rewards}
    configs = [replace(options.qat, seed=options.qat.seed + index) for index in range(options.seeds)]
    full = train_all(task, allocations, configs, journal, options.workers, options.threads)
    rows, limit = correlate(allocations, rewards, full, options), ceiling(full)
    costs = [sizes.cost(each.weight_bits, each.activation_bits) for each in allocations]
    case = {
        **circumstances(NAME, arguments, options),
        "samples": {name: len(split) for name, split in task.splits.items()},
        "rows": [asdict(row) for row in rows],
        "ceiling": asdict(limit),
        "allocations": [
            {
                "weight_bits": allocation.weight_bits,
                "size": cost / tables["size"].reference,
                "rewards": {name: asdict(measured[index]) for name, measured in rewards.items()},
                "full": [asdict(run) for run in full[index]],
            }
            for index, (allocation, cost) in enumerate(zip(allocations, costs, strict=True))
        ],
    }
    cases = {**read_cases(NAME, options.output), f"{options.task}, size {options.budget}": case}
    write_cases(NAME, options.output, cases, to_markdown(cases))
    journal.remove()
    return 0


def rank_correlations(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlations, ties by mean rank; 0 where either side is constant and ranks nothing.

    Args:
        values: (..., n, K).
        target: (..., n).

    Returns:
        (..., K).
    """
    ranks = rankdata(values, axis=-2) - (values.shape[-2] + 1) / 2
    wanted = rankdata(target, axis=-1)[..., None] - (values.shape[-2] + 1) / 2
    norm = np.sqrt((ranks**2).sum(axis=-2) * (wanted**2).sum(axis=-2))
    products = (ranks * wanted).sum(axis=-2)
    return np.divide(products, norm, out=np.zeros_like(products), where=norm > 0)


def correlate(
    allocations: Sequence[Allocation],
    rewards: Mapping[str, Sequence[Measured]],
    full: Sequence[Sequence[Trained]],
    options: FidelityOptions,
) -> list[Fidelity]:
    """Correlates every reward with the full recipe.

    Args:
        allocations: The allocations.
        rewards: What was measured of each, by reward; ``ptq`` among them.
        full: Runs of the full recipe, [allocation][seed].
        options: Says how often and with which seed allocations are resampled.

    Returns:
        A row for each reward, in order.
    """
    columns: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name, measured in rewards.items():
        columns[f"{name}: accuracy"] = np.array([each.evaluation.accuracy for each in measured])
        columns[f"{name}: loss"] = -np.array([each.evaluation.loss for each in measured])
        median = float(np.median([each.seconds for each in measured]))
        seconds |= {f"{name}: accuracy": median, f"{name}: loss": median}
    columns[MEAN_BITS] = np.array([np.mean(each.weight_bits) for each in allocations])
    seconds[MEAN_BITS] = 0.0
    accuracy = np.array([np.mean([run.test.accuracy for run in runs]) for runs in full])
    loss = -np.array([np.mean([run.test.loss for run in runs]) for runs in full])
    default = list(columns).index(DEFAULT)

    def statistic(resampled: np.ndarray) -> np.ndarray:
        """Maps (R, n, K + 1), the accuracy last, to (R, 2, K): correlations, and what they are above the default's."""
        found = rank_correlations(resampled[..., :-1], resampled[..., -1])
        return np.stack([found, found - found[:, default, None]], axis=1)

    values = np.stack(list(columns.values()), axis=1)  # (n, K)
    estimate = bootstrap([np.column_stack([values, accuracy])], statistic, options.resamples, options.seed)
    triples = np.stack([estimate.value, estimate.low, estimate.high], axis=-1)  # (2, K, 3)
    by_loss = rank_correlations(values, loss)
    return [
        Fidelity(
            name,
            tuple(triples[0, index].tolist()),
            tuple(triples[1, index].tolist()),
            float(by_loss[index]),
            float(accuracy[column == column.max()].mean()),
            seconds[name],
        )
        for index, (name, column) in enumerate(columns.items())
    ]


def ceiling(full: Sequence[Sequence[Trained]]) -> Ceiling:
    """Measures how repeatable the full recipe is.

    Args:
        full: Its runs, [allocation][seed], at least two seeds.
    """
    test = np.array([[run.test.accuracy for run in runs] for runs in full])  # (n, seeds)
    search = np.array([[run.search.accuracy for run in runs] for runs in full])
    pairs = [float(rank_correlations(test[:, [i]], test[:, j])[0]) for i, j in combinations(range(test.shape[1]), 2)]
    between, count = float(np.mean(pairs)), test.shape[1]
    reliability = count * between / (1 + (count - 1) * between) if between > 0 else 0.0
    return Ceiling(
        between,
        reliability,
        float(np.sqrt(reliability)),
        float(rank_correlations(search.mean(axis=1)[:, None], test.mean(axis=1))[0]),
        float(np.sqrt(test.var(axis=1, ddof=1).mean())),
        float(np.median([run.seconds for runs in full for run in runs])),
    )


def to_markdown(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table for each case of the JSON file."""
    lines = [
        "# Do cheap rewards rank allocations as full training does?",
        "",
        "Spearman's rank correlation of each reward, measured on the search split, with the test accuracy after the "
        "full recipe, mean over its seeds (95% bootstrap interval over allocations); losses count negatively. "
        "Allocations are random ones into which no further bit fits, the largest uniform one among them. favourite: "
        "test accuracy after the full recipe of the allocation that the reward likes best. Seconds are processor time "
        "of one evaluation, medians.",
    ]
    for title, case in cases.items():
        lines += ["", f"## {title}", "", _description(case), ""]
        lines += [
            f"| reward | correlation | less that of {DEFAULT} | with test loss | favourite | seconds | times ptq |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        base = next(row["seconds"] for row in case["rows"] if row["reward"] == DEFAULT)
        for row in case["rows"]:
            difference = "" if row["reward"] == DEFAULT else _interval(row["difference"], "+.2f")
            lines.append(
                f"| {row['reward']} | {_interval(row['spearman'], '.2f')} | {difference} | {row['spearman_loss']:.2f} "
                f"| {row['favourite']:.2%} | {row['seconds']:.3g} | {row['seconds'] / base:,.1f} |"
            )
        limit = case["ceiling"]
        lines.append(
            f"| full recipe, one run | {limit['between_seeds']:.2f} between seeds | | | | {limit['seconds']:.3g} "
            f"| {limit['seconds'] / base:,.1f} |"
        )
        lines += ["", _ceiling_text(limit, case["options"]["seeds"]), "", _verdict(case["rows"])]
    return "\n".join(lines) + "\n"


def _interval(triple: Sequence[float], form: str) -> str:
    value, low, high = (format(number, form) for number in triple)
    return f"{value} ({low} to {high})"


def _description(case: Mapping[str, Any]) -> str:
    options, samples = case["options"], case["samples"]
    accuracy = [float(np.mean([_accuracy(run["test"]) for run in each["full"]])) for each in case["allocations"]]
    sizes = [each["size"] for each in case["allocations"]]
    first = ", ".join(map(str, case["allocations"][0]["weight_bits"]))
    return (
        f"{options['allocations']} allocations of {min(sizes):.3f} to {max(sizes):.3f} of the size at 8 bits, "
        f"{options['activation_bits']}-bit activations; {samples['train']:,} training, {samples['search']:,} search "
        f"and {samples['test']:,} test images. Full recipe: {options['qat']['epochs']} epochs, {options['seeds']} "
        f"seeds; test accuracy after it {min(accuracy):.2%} to {max(accuracy):.2%}, mean {np.mean(accuracy):.2%}, of "
        f"the first allocation ({first} bits) {accuracy[0]:.2%}."
    )


def _accuracy(evaluation: Mapping[str, Any]) -> float:
    return float(evaluation["correct"] / evaluation["samples"])


def _ceiling_text(limit: Mapping[str, float], seeds: int) -> str:
    return (
        f"The full recipe's own repeatability: test accuracy varies by {limit['seed_deviation']:.2%} between seeds "
        f"(standard deviation), two seeds rank alike to {limit['between_seeds']:.2f}, the mean of {seeds} has a "
        f"reliability of {limit['reliability']:.2f}, so that a perfect reward would reach about "
        f"{limit['highest']:.2f}; its own accuracy on the search split reaches {limit['search']:.2f}."
    )


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Says which rewards rank better than the default and at which price, no more than the intervals support."""
    best = max(rows, key=lambda row: row["spearman"][0])
    better = [row for row in rows if row["difference"][1] > 0]
    if not better:
        return (
            f"Highest correlation: {best['reward']} ({best['spearman'][0]:.2f}). No reward ranks better than {DEFAULT} "
            "beyond the interval of the difference."
        )
    cheapest = min(better, key=lambda row: (row["seconds"], -row["spearman"][0]))
    return (
        f"Highest correlation: {best['reward']} ({best['spearman'][0]:.2f}). Cheapest that ranks better than {DEFAULT} "
        f"beyond the interval of the difference: {cheapest['reward']} ({cheapest['spearman'][0]:.2f})."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
