"""Benchmark: what bits for each channel group are worth, against bits for each layer, at the same sizes.

`python -m experiments.studies.bench_channel_groups` runs it with its defaults. Layers are whole (G = 1) or cut into up
to G groups of output channels; every way of searching gets the same number of evaluations. Annealing and REINFORCE
decide every group's bits, in episodes of L x G decisions, or in the hierarchical mode two for each layer, whatever G
is. As a control the channels are also cut at random, not by sensitivity, in another way for each seed.  What hardware
could use the groups: bit-serial or bit-fused accelerators (BISMO, BitFusion, on FPGAs or as ASICs), which take output
channels one after the other; and kernels that unpack weights from memory and multiply in int8, which save size and
bandwidth but no time to multiply. GPUs and CPUs have one type for all weights of a call, so there each group is a call
of its own: layers are cut into small pieces, which costs what the size model here does not count.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from agents import make_agent
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.runs.progress import ProgressView
from experiments.runs.recorder import EpisodeRecorder
from experiments.runs.top_k import TopK
from experiments.studies.harness import write_results
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.sensitivity import group_channels
from quantenv.tasks import Task, get_task

NAME = "bench_channel_groups"
#: How channels are cut into groups.
SORTED, RANDOM = "by sensitivity", "at random"
#: Agent and decisions of each way of searching.
SEARCHES = (
    ("annealing", "weights"),
    ("annealing", "hierarchical"),
    ("reinforce", "weights"),
    ("reinforce", "hierarchical"),
)


@dataclass(frozen=True)
class BenchOptions:
    """Searches for bits of whole layers and of channel groups at equal evaluations, and compares the best found."""

    task: str = "digits"
    """Task."""
    budgets: list[float] = field(default_factory=lambda: [0.3, 0.35, 0.45])
    """Size budgets, as ratios of the size at 8 bits."""
    groups: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Channel groups of each layer; the first is what the others are compared with."""
    evaluations: int = 120
    """Evaluations of every search."""
    seeds: int = 3
    """Searches of every kind."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name in ("evaluations", "seeds", "threads"):
            if getattr(self, name) < 1:
                raise QuantenvError(f"--{name} is {getattr(self, name)}; expected a whole number of at least 1.")
        if len(self.groups) < 2 or min(self.groups) < 1:
            raise QuantenvError(f"--groups is {self.groups}; expected at least two numbers of groups, as [1,4].")


@dataclass(frozen=True)
class Result:
    """The best allocation of one search."""

    budget: float
    """Size budget, a ratio."""
    groups: int
    """Channel groups of each layer, at most."""
    cut: str
    """`SORTED` or `RANDOM`."""
    agent: str
    """Agent."""
    decisions: str
    """Decision mode of the environment."""
    length: int
    """Decisions in an episode."""
    seed: int
    """Seed."""
    search: float
    """Accuracy of the best allocation on the search split, by which it was chosen."""
    test: float
    """Its accuracy on the test split."""
    search_loss: float
    """Its mean cross-entropy on the search split, nats."""
    test_loss: float
    """Its mean cross-entropy on the test split, nats."""
    seconds: float
    """Time of the search."""


#: What searches have in common but for the seed: groups, cut, agent, decisions.
Way = tuple[int, str, str, str]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    torch.set_num_threads(options.threads)
    whole = get_task(options.task)
    ways = list(ways_of(options.groups))
    rows: list[Result] = []
    total = len(ways) * len(options.budgets) * options.seeds
    evaluators: dict[tuple[int, str, int], PTQEvaluator] = {}
    with ProgressView(announcements(), "channel groups", total) as view:
        for way, seed in itertools.product(ways, range(options.seeds)):
            groups, cut, agent, decisions = way
            key = groups, cut, seed if cut == RANDOM else 0
            if key not in evaluators:
                evaluators[key] = PTQEvaluator(cut_task(whole, *key), "float")
            for budget in options.budgets:
                rows.append(search(evaluators[key], way, budget, seed, options.evaluations))
                view.show(len(rows), f"{agent} {decisions}, {groups} groups {cut}, size {budget}")
    samples = {split: len(whole.splits[split]) for split in ("search", "test")}
    measured = {"rows": [asdict(row) for row in rows], "samples": samples, "findings": findings(rows, options, samples)}
    write_results(NAME, arguments, options, "", measured, to_markdown(rows, options, samples))
    return 0


def ways_of(groups: Sequence[int]) -> Iterator[Way]:
    """Lists the ways of searching: those of whole layers first, the control last."""
    for count in groups:
        for agent, decisions in SEARCHES:
            if count > 1 or decisions == "weights":
                yield count, SORTED, agent, decisions
    yield max(groups), RANDOM, *SEARCHES[0]


def cut_task(whole: Task, groups: int, cut: str, seed: int) -> Task:
    """Cuts a task's layers by sensitivity, or by an order that the seed draws into groups of the same sizes."""
    task = group_channels(whole, groups)
    if cut == SORTED:
        return task
    generator = np.random.default_rng(seed)
    shuffled = {}
    for name, parts in task.channel_groups.items():
        order = generator.permutation(sum(map(len, parts)))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        shuffled[name] = tuple(tuple(sorted(part.tolist())) for part in np.split(order, ends))
    return dataclasses.replace(task, channel_groups=shuffled)


def search(evaluator: PTQEvaluator, way: Way, budget: float, seed: int, evaluations: int) -> Result:
    """Searches once, and evaluates the best allocation on the test split."""
    groups, cut, agent_name, decisions = way
    env = QuantizationEnv(
        evaluator.task, metric="size", budget=budget, decisions=decisions, evaluator=evaluator, store="off"
    )
    recorder = EpisodeRecorder(env, evaluator.reference.samples)
    top = TopK(1, env.budgets)
    recorder.listeners.append(top)
    started = time.perf_counter()
    make_agent(agent_name, recorder, seed).learn(evaluations, lambda metrics: None)
    seconds = time.perf_counter() - started
    best = top.best
    assert best is not None  # masked episodes are feasible
    (test,) = evaluator.evaluate([best.allocation(env.layers)], "test")
    found = (best.accuracy, test.accuracy, best.loss, test.loss)
    return Result(budget, groups, cut, agent_name, decisions, env.n_decisions, seed, *found, seconds)


def mean_by_way(rows: Sequence[Result], what: str) -> dict[tuple[Way, float], float]:
    """Returns the mean over seeds of a field of the results, by way of searching and budget."""
    found: dict[tuple[Way, float], list[float]] = {}
    for row in rows:
        found.setdefault(((row.groups, row.cut, row.agent, row.decisions), row.budget), []).append(getattr(row, what))
    return {key: float(np.mean(values)) for key, values in found.items()}


def findings(rows: Sequence[Result], options: BenchOptions, samples: dict[str, int]) -> list[str]:
    """Says in words what groups gained, for each agent, whichever way it turned out."""
    test, loss = mean_by_way(rows, "test"), mean_by_way(rows, "test_loss")
    base = options.groups[0]
    sentences = []
    for way in dict.fromkeys(way for way, _ in test):
        groups, cut, agent, decisions = way
        if groups == base:
            continue
        plain = (base, SORTED, agent, "weights")
        gains = [100 * (test[way, budget] - test[plain, budget]) for budget in options.budgets]
        losses = [loss[way, budget] - loss[plain, budget] for budget in options.budgets]
        better = sum(gain > 0 for gain in gains)
        sentences.append(
            f"{agent}, {decisions}, {groups} groups cut {cut}, against {base}: "
            f"{', '.join(f'{gain:+.1f}' for gain in gains)} points of test accuracy at sizes "
            f"{', '.join(map(str, options.budgets))} (better at {better} of {len(gains)}; cross-entropy "
            f"{', '.join(f'{change:+.3f}' for change in losses)} nats)."
        )
    mean = float(np.mean(list(test.values())))
    error = 100 * (mean * (1 - mean) / samples["test"]) ** 0.5
    sentences.append(
        f"The binomial standard error of one test accuracy is about {error:.1f} points, and all searches see the same "
        "samples; differences below that are none."
    )
    return sentences


def to_markdown(rows: Sequence[Result], options: BenchOptions, samples: dict[str, int]) -> str:
    """Returns a row for each way of searching, with the accuracy found at each budget, and the findings."""
    columns = [f"{split} at {budget}" for budget in options.budgets for split in ("search", "test")]
    lines = [
        "# Channel groups",
        "",
        f"{options.task}, post-training, float arithmetic, 8-bit activations: accuracy of the best allocation found in "
        f"{options.evaluations} evaluations, mean of {options.seeds} seeds, on {samples['search']:,} search and "
        f"{samples['test']:,} test samples. Sizes are ratios of the size at 8 bits. What measuring sensitivities takes "
        "is not counted; it grows with the number of groups.",
        "",
        f"| groups | channels cut | agent | decisions | episode | {' | '.join(columns)} | s |",
        "|---:|---|---|---|---:|" + "---:|" * (len(columns) + 1),
    ]
    means = {what: mean_by_way(rows, what) for what in ("search", "test", "seconds", "length")}
    for way in dict.fromkeys(way for way, _ in means["search"]):
        groups, cut, agent, decisions = way
        cells = [f"{means[split][way, budget]:.1%}" for budget in options.budgets for split in ("search", "test")]
        seconds = np.mean([means["seconds"][way, budget] for budget in options.budgets])
        length = means["length"][way, options.budgets[0]]
        lines.append(
            f"| {groups} | {cut if groups > 1 else '-'} | {agent} | {decisions} | {length:.0f} | {' | '.join(cells)} | "
            f"{seconds:.1f} |"
        )
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in findings(rows, options, samples))]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
