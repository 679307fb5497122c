"""Benchmark part: would a cache of activations, keyed by prefixes of allocations, pay inside searches?

Agents search; what they ask to be evaluated is recorded, batch by batch. Of the distinct allocations (the store answers
the others) the layers' multiply-accumulates are counted that remain with this or that way of sharing. Then the searches
on ResNet-20 are replayed on the network, with and without a cache of limited size, alternately, and timed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agents import make_agent
from experiments.activation_cache import SEGMENTS, replay
from experiments.bench_options import BenchOptions
from experiments.bench_tasks import source, timed_resnet20
from experiments.benchmark import Claim, show
from quantenv.allocation import Allocation
from quantenv.env.environment import QuantizationEnv
from quantenv.evaluate.base import Evaluation, Evaluator, known_activations
from quantenv.evaluate.ptq import PTQEvaluator
from quantenv.evaluate.store import Bits
from quantenv.evaluate.table import EvaluationTable
from quantenv.evaluate.table_evaluator import TableEvaluator
from quantenv.evaluate.tables import get_table
from quantenv.layers import LayerSpec

AGENTS = ("reinforce", "ppo", "ddpg", "random")
#: What is searched: the two tables, and ResNet-20 as an environment over a network offers it.
DIGITS, TIED, FREE = "digits, 8 layers, 4 options", "ResNet-20, 8 groups, 4 options", "ResNet-20, 20 layers, 7 options"
BUDGET = 0.45
#: Images and bytes of activations (one byte a value) of the cache of limited size, which holds the outputs of the
#: first decisions: deeper ones recur too rarely.
IMAGES, BOUND, DEPTH = 1000, 512 << 20, 3
#: Part of the wall time that a cache has to save in the search over all layers to be kept.
WORTHWHILE = 0.2

Batches = list[list[Bits]]


class RecordingEvaluator:
    """Passes everything through and keeps what was asked, batch by batch."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.layers, self.reference, self.identity = evaluator.layers, evaluator.reference, evaluator.identity
        self.activations = known_activations(evaluator)
        self.batches: Batches = []

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Evaluates allocations."""
        self.batches.append([allocation.bits for allocation in allocations])
        return self._evaluator.evaluate(allocations, split)


class AdditiveEvaluator:
    """Pretends that harms add up and quarter with every bit, so that agents have something to learn at no cost.

    Args:
        table: Table of the same network: gives its layers, their shares of the harm, and the float accuracy.
    """

    identity = "additive"

    def __init__(self, table: EvaluationTable) -> None:
        self.layers, self.activations = table.layers, table.activations
        self.reference = table.reference["search"]
        self._shares = table.sensitivity / table.sensitivity.sum()

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Pretends to evaluate allocations."""
        harms = [float(self._shares @ 4.0 ** (2 - np.array(a.bits)[:, 0])) for a in allocations]
        most, samples = self.reference.correct, self.reference.samples
        return [Evaluation(round(most * float(np.exp(-2 * harm))), samples, harm) for harm in harms]


def measure(options: BenchOptions) -> dict[str, Any]:
    """Records searches, counts what could be shared and times a cache.

    Args:
        options: `episodes`, `replayed` and `seed` count.

    Returns:
        By search and agent: evaluations, distinct ones, the shares of multiply-accumulates that remain, and on
        ResNet-20 the spread of the ratio of wall times with and without the cache.
    """
    # Statistics that are estimated anew for every call would keep calls from sharing anything.
    task = replace(timed_resnet20(options.replayed), scheme="linear")
    evaluator = PTQEvaluator(task)
    searches: dict[str, Any] = {}
    for name in (DIGITS, TIED, FREE):
        table = get_table("digits_table" if name == DIGITS else "resnet20_table")
        ends = list(range(len(table.layers))) if name == FREE else [max(m) for m in table.members]
        images = table.reference["search"].samples if name == DIGITS else IMAGES
        searches[name] = {}
        for agent in AGENTS:
            batches = record_search(table, name == FREE, agent, options.episodes, options.seed)
            distinct = _distinct(batches)
            searches[name][agent] = {
                "evaluations": sum(map(len, batches)),
                "distinct": sum(map(len, distinct)),
                "remaining": remaining(distinct, table.layers, ends, BOUND / images),
            }
            if name != DIGITS:
                bound = BOUND * evaluator.network.storage.value_bytes * options.replayed / IMAGES
                searches[name][agent]["wall_time"] = replay(evaluator, distinct, ends[:DEPTH], bound)
    return {
        "backend": evaluator.backend,
        "replayed_images": options.replayed,
        "source": source(task),
        "searches": searches,
        "decision": _decide(searches),
    }


def record_search(table: EvaluationTable, free: bool, agent: str, episodes: int, seed: int) -> Batches:
    """Lets an agent search, and returns what it asked to be evaluated.

    Args:
        table: The table: searched, or only described if all layers are free.
        free: Whether every layer is decided, from 2 to 8 bits, and `AdditiveEvaluator` answers.
        agent: Name of the agent.
        episodes: Evaluations.
        seed: Seed of the agent.
    """
    recorder = RecordingEvaluator(AdditiveEvaluator(table) if free else TableEvaluator(table))
    decisions: dict[str, Any] = {} if free else {"bits": table.bits, "tied": table.groups}
    env = QuantizationEnv(evaluator=recorder, sensitivity=table.sensitivity, budget=BUDGET, **decisions)
    make_agent(agent, env, seed).learn(episodes, lambda metrics: None)
    return recorder.batches


def remaining(batches: Batches, layers: Sequence[LayerSpec], ends: Sequence[int], bound: float) -> dict[str, float]:
    """Counts the multiply-accumulates that remain, relative to those of every allocation evaluated by itself.

    Args:
        batches: Distinct allocations, sorted within each batch.
        layers: The network's layers.
        ends: The last layer of each decision.
        bound: Values that the limited cache holds for one sample.

    Returns:
        Shares by what is shared: within a batch (as the evaluator does), also with the last allocation of the batch
        before, with a cache of the outputs of the first `DEPTH` decisions under the bound, and with everything ever
        computed.
    """
    work = np.array([layer.macs for layer in layers], dtype=float)
    sums = np.concatenate([[0.0], work.cumsum()])
    spent = dict.fromkeys(("within a batch", "with the last one", "limited cache", "everything"), 0.0)
    cache: OrderedDict[Bits, int] = OrderedDict()
    seen: set[Bits] = set()
    used, last, count = 0, None, 0
    for batch in batches:
        previous = None
        for bits in batch:
            count += 1
            shared = _common(bits, previous)
            spent["within a batch"] += sums[-1] - sums[shared]
            spent["with the last one"] += sums[-1] - sums[_common(bits, previous or last)]
            prefixes = [bits[: end + 1] for end in range(len(bits))]
            spent["everything"] += sum(work[len(p) - 1] for p in prefixes if p not in seen)
            seen.update(prefixes)
            heads = [bits[: end + 1] for end in ends[:DEPTH]]
            hits = [head for head in heads if head in cache]
            spent["limited cache"] += sums[-1] - sums[max([shared, *map(len, hits)])]
            for head in hits:
                cache.move_to_end(head)
            for head in heads:
                if head not in cache:
                    cache[head] = layers[len(head) - 1].output_elements
                    used += cache[head]
            while used > bound:
                used -= cache.popitem(last=False)[1]
            previous = bits
        last = previous or last
    return {what: float(value / (count * sums[-1])) for what, value in spent.items()}


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says what a cache would save; it has no target."""
    rows = []
    for name in (TIED, FREE):
        ratios = [agent["wall_time"]["total"] for agent in measured["searches"][name].values()]
        claim = f"{name}: wall time of searches with a cache of activations, relative to without (cache not in use)"
        rows.append(Claim(claim, "", f"{min(ratios):.2f} to {max(ratios):.2f}, by agent"))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table and the decision."""
    first = next(iter(next(iter(measured["searches"].values())).values()))
    lines = [
        f"Size budget {BUDGET}. Multiply-accumulates that remain when distinct allocations share prefixes, relative to "
        f"evaluating each by itself. The limited cache holds the outputs of the first {DEPTH} decisions, "
        f"{BOUND >> 20} MiB for {IMAGES:,} images at a byte a value. Wall times: {measured['backend']} backend, "
        f"{measured['replayed_images']} images ({measured['source']}), cached relative to plain, median (least to "
        f"greatest) of up to {SEGMENTS} parts of a search.",
        "",
        f"| search | agent | distinct of | {' | '.join(first['remaining'])} | wall time |",
        "|---|---|---|" + "---|" * (len(first["remaining"]) + 1),
    ]
    for name, agents in measured["searches"].items():
        for agent, row in agents.items():
            cells = [f"{value:.3f}" for value in row["remaining"].values()]
            cells.append(show(row["wall_time"], ".2f") if "wall_time" in row else "-")
            lines.append(f"| {name} | {agent} | {row['distinct']} of {row['evaluations']} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{measured['decision']}\n"


def _decide(searches: dict[str, Any]) -> str:
    saved = {name: [1 - agent["wall_time"]["total"] for agent in searches[name].values()] for name in (TIED, FREE)}
    figures = "; ".join(f"{name}: {min(values):z.0%} to {max(values):z.0%}" for name, values in saved.items())
    pays = min(saved[FREE]) > WORTHWHILE
    reason = (
        "It pays in the search over all layers, too, and should be built in."
        if pays
        else "Prefixes recur only where decisions and options are few, and such a task is better enumerated once: its "
        "table then answers every search. The evaluator keeps no activations between calls."
    )
    return f"Decision: a cache saves this part of the wall time, by agent ({figures}). {reason}"


def _distinct(batches: Batches) -> Batches:
    """Leaves out what was asked before, which the store answers, and sorts each batch as the evaluator does."""
    known: set[Bits] = set()
    result = []
    for batch in batches:
        new = sorted(set(batch) - known)
        known.update(new)
        if new:
            result.append(new)
    return result


def _common(bits: Bits, other: Bits | None) -> int:
    """Returns how many first layers two allocations have in common."""
    pairs = zip(bits, other or (), strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(bits) if other else 0)
