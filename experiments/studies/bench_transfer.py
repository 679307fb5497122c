"""Benchmark: does an agent that was trained on one task need fewer evaluations on another one?

For each pair of tasks and each seed, an agent is trained on the first task. On the second, one that goes on from it
and one from scratch search under the same budget, and it is counted after how many evaluations each has found an
allocation whose accuracy is the target. On a table task the target is the optimum less --regret. Elsewhere it is the
least accurate of what the runs from scratch end with, so that all of them reach it.

Prints a table for every pair and agent, and writes JSON and Markdown, where results of other pairs are kept. Agents
have their options for any task (`experiments/configs/agents`): those for one task could make networks of other shapes.
A network of the user's as the target, here one that `quantenv pretrain --task imagefolder` trained:

    python -m experiments.studies.bench_transfer --pairs '[resnet20_table:imagefolder]' --data cifar --image_size 32
        --max_images 500 --model quantenv.tasks.networks.cifar:resnet32 --weights resnet32.pt --bits '[2,4,6,8]'
        --evaluations 300
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import make_agent
from experiments.leaderboard.statistics import first_reached, interquartile_mean
from experiments.options.agents import ANY, resolved_options
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.options.runs import TrainOptions
from experiments.options.task_source import SOURCE, SourceOptions
from experiments.runs.parts import make_env, search_evaluator
from experiments.runs.recorder import EpisodeRecorder
from experiments.studies.harness import circumstances, read_cases, write_cases
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.store.store import OFF, open_store
from quantenv.evaluation.table.optimum import optimum
from quantenv.evaluation.table.shipped import resolve_task

NAME = "bench_transfer"


@dataclass(frozen=True, kw_only=True)
class TransferOptions(SourceOptions):
    """Measures evaluations to a target from scratch and from an agent that was trained on another task.

    Data, network and weights are those of the second task of a pair, where it does not bring its own.
    """

    pairs: list[str] = field(default_factory=lambda: ["digits_table:resnet20_table", "resnet20_table:digits_table"])
    """Tasks to train on and to go on with, as source:target; tables or others."""
    agents: list[str] = field(default_factory=lambda: ["reinforce", "ppo"])
    """Learners."""
    metric: str = "size"
    """What the budget bounds, on both tasks."""
    budget: float = 0.45
    """A ratio of the cost at 8 bits, on both tasks."""
    source_decisions: str = "weights"
    """What is decided on the source task: weights, or weights+activations."""
    decisions: str = "weights"
    """The same on the target task."""
    bits: list[int] | None = None
    """Bit-widths to choose from on both tasks; by default 2 to 8, or a table's."""
    source_evaluations: int = 1000
    """Evaluations of the training on the source task."""
    evaluations: int = 1000
    """Most evaluations on the target task; runs that do not reach the target by then are censored."""
    regret: float = 0.25
    """Points of accuracy below the optimum that count as reached, on a table task."""
    seeds: int = 5
    """Seeds, from 0; each trains its own agent on the source task."""
    store: str | None = None
    """Where evaluations of tasks that are no tables are kept; see `quantenv train --help`."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if pair.count(":") != 1:
                raise QuantenvError(f"--pairs holds {pair!r}: expected source:target, two tasks.")
        if min(self.seeds, self.evaluations, self.source_evaluations) < 1:
            raise QuantenvError("--seeds, --evaluations and --source_evaluations must be at least 1.")


@dataclass(frozen=True)
class Comparison:
    """One pair of tasks and one agent."""

    source: str
    target: str
    agent: str
    accuracy: float
    """The target."""
    scratch: tuple[float, ...]
    """Evaluations to it by seed; inf where a run ended before."""
    transferred: tuple[float, ...]
    """The same of the runs that went on from the source task."""
    final: tuple[float, float]
    """Interquartile means of the best accuracies in the end, from scratch and transferred."""

    @property
    def medians(self) -> tuple[float, float]:
        """Medians of the evaluations to the target, one of the values each, from scratch and transferred."""
        return median(self.scratch), median(self.transferred)

    @property
    def saved(self) -> float | None:
        """Share of the median evaluations that transfer saves; negative if it costs some, None if no median exists."""
        scratch, transferred = self.medians
        return 1 - transferred / scratch if math.isfinite(scratch) and math.isfinite(transferred) else None


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, or damaged results of an earlier run.
    """
    options = parse_options(TransferOptions, NAME, arguments)
    read_cases(NAME, options.output)  # a damaged file is better known now than in the end
    torch.set_num_threads(1)
    found = []
    for pair in options.pairs:
        source, target = pair.split(":")
        for agent in options.agents:
            found.append(compare(source, target, agent, options))
            announcements().print(sentence(found[-1]))
    case = {
        **circumstances(NAME, arguments, options),
        "comparisons": [
            {
                **asdict(each),
                "scratch": _finite(each.scratch),
                "transferred": _finite(each.transferred),
                "saved": each.saved,
                "sentence": sentence(each),
            }
            for each in found
        ],
    }
    title = ", ".join(dict.fromkeys(f"{each.source} to {each.target}" for each in found))
    cases = {**read_cases(NAME, options.output), title: case}
    write_cases(NAME, options.output, cases, to_markdown(cases))
    return 0


def compare(source: str, target: str, agent: str, options: TransferOptions) -> Comparison:
    """Trains on one task, and searches the other one with and without what was learned."""
    common: dict[str, Any] = {"agent": agent, "metric": options.metric, "budget": options.budget, "bits": options.bits}
    training = TrainOptions(
        task=source, decisions=options.source_decisions, evaluations=options.source_evaluations, **common
    )
    brought = {name: getattr(options, name) for name in SOURCE}
    search = TrainOptions(
        task=target, decisions=options.decisions, evaluations=options.evaluations, **common, **brought
    )
    scratch, transferred = [], []
    accuracy = -math.inf
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            trained = Path(folder) / f"{agent}-{seed}"
            _run(replace(training, seed=seed), options.store, save=trained)
            env, curve = _run(replace(search, seed=seed), options.store)
            scratch.append(curve)
            _, curve = _run(replace(search, seed=seed), options.store, start=trained)
            transferred.append(curve)
    if env.table is not None:
        best = optimum(env.table, env.budgets, env.tables, allowed=env.allowed).best.evaluation
        accuracy = best.accuracy - options.regret / 100
    else:
        accuracy = min(float(curve[-1]) for curve in scratch)
    times = [first_reached(-np.stack(curves), -accuracy + 1e-12) for curves in (scratch, transferred)]
    ends = [float(interquartile_mean(np.array([curve[-1] for curve in curves]))) for curves in (scratch, transferred)]
    named = f"{target} ({options.model})" if options.model else target
    return Comparison(
        source, named, agent, accuracy, tuple(times[0].tolist()), tuple(times[1].tolist()), (ends[0], ends[1])
    )


def _run(
    run: TrainOptions, store: str | None, start: Path | None = None, save: Path | None = None
) -> tuple[QuantizationEnv, np.ndarray]:
    """Searches once.

    Args:
        run: What is searched, by whom.
        store: As `TransferOptions.store`.
        start: A saved agent to go on from.
        save: Where to save the agent.

    Returns:
        The environment, and the best feasible accuracy so far after each evaluation, -1 before there is one.
    """
    task = resolve_task(run.task, run.source)
    with search_evaluator(run, task, open_store(store) or OFF) as evaluator:
        wrapped, env = make_env(run, task, evaluator)
        recorder = EpisodeRecorder(wrapped, evaluator.reference.samples)
        accuracies: list[float] = []
        recorder.listeners = [lambda episode: accuracies.append(episode.accuracy if episode.feasible else -1.0)]
        given: dict[str, Any] = resolved_options(run.agent, ANY, {})
        agent = make_agent(run.agent, recorder, run.seed, given)
        if start is not None:
            agent.load(start)
        agent.learn(run.evaluations, lambda metrics: None)
        if save is not None:
            agent.save(save)
    return env, np.maximum.accumulate(np.array(accuracies))


def sentence(comparison: Comparison) -> str:
    """Says what transfer saved or cost."""
    scratch, transferred = (f"{time:.0f}" if math.isfinite(time) else "never" for time in comparison.medians)
    saved = comparison.saved
    if saved is not None:
        verdict = f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'}"
    else:
        reached = [
            name for name, time in zip(("scratch", "transferred"), comparison.medians, strict=True) if time < math.inf
        ]
        verdict = f"only {reached[0]} reaches it" if reached else "neither reaches it"
    return (
        f"{comparison.agent}, {comparison.source} to {comparison.target}: median evaluations to accuracy "
        f"{comparison.accuracy:.2%} are {scratch} from scratch, {transferred} transferred ({verdict})."
    )


def to_markdown(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table for each case of the JSON file."""
    lines = ["# Transfer: evaluations to a target, from scratch and from an agent of another task"]
    for title, case in cases.items():
        options = case["options"]
        lines += [
            "",
            f"## {title}",
            "",
            f"{options['seeds']} seeds; {options['source_evaluations']:,} evaluations on the source task; at most "
            f"{options['evaluations']:,} on the target task; {options['metric']} budget {options['budget']:g}. On "
            f"tables the target is the optimum less {options['regret']:g} points, elsewhere the least accurate of "
            "what the runs from scratch end with. Medians count runs that do not reach it as longest.",
            "",
            "| source | target | agent | target accuracy | scratch: each seed | transferred: each seed | medians "
            "| saved | final accuracy |",
            "|---|---|---|---:|---|---|---:|---:|---:|",
        ]
        for each in case["comparisons"]:
            times = [[math.inf if time is None else time for time in each[name]] for name in ("scratch", "transferred")]
            medians = " / ".join(_times([median(seeds)]) for seeds in times)
            saved = "-" if each["saved"] is None else f"{each['saved']:.0%}"
            final = " / ".join(f"{accuracy:.2%}" for accuracy in each["final"])
            lines.append(
                f"| {each['source']} | {each['target']} | {each['agent']} | {each['accuracy']:.2%} | "
                f"{' | '.join(_times(seeds) for seeds in times)} | {medians} | {saved} | {final} |"
            )
        lines += ["", *(each["sentence"] for each in case["comparisons"])]
    return "\n".join(lines) + "\n"


def median(times: Sequence[float]) -> float:
    """Returns the (lower) median, which is one of the values, so that some may be infinite."""
    return sorted(times)[(len(times) - 1) // 2]


def _times(times: Sequence[float]) -> str:
    return ", ".join(f"{time:.0f}" if math.isfinite(time) else "never" for time in times)


def _finite(times: Sequence[float]) -> list[float | None]:
    """JSON has no infinity."""
    return [time if math.isfinite(time) else None for time in times]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
