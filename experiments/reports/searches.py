"""Searches as a report knows them: settings, cases, what was found, and which points nothing beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.options.runs import TrainOptions
from experiments.runs.final_table import Report

#: Weight and activation bits of every layer.
Bits = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Setting:
    """What searches must share to be drawn in one figure: the task and what is offered, but not the budget."""

    task: str
    """Name of a task, or path of a table."""
    metrics: tuple[str, ...]
    """What is budgeted."""
    device: str
    """Whose costs count."""
    decisions: str
    """What is decided."""
    bits: tuple[int, ...] | None
    """Bit-widths on offer; None means the default."""
    pinned: str | tuple[tuple[str, int], ...] | None
    """Layers that are not decided."""
    evaluator: str
    """How accuracy is measured."""
    identity: str
    """The evaluator's content hash: weights, splits, scheme and settings."""

    @property
    def title(self) -> str:
        """How it is called: task and metrics, and what is not as usual."""
        return f"{self.name}, {' and '.join(self.metrics)}{self.unusual}"

    @property
    def name(self) -> str:
        """The task; of a table that was given by its path, the file's name."""
        return Path(self.task).stem if self.task.endswith(".npz") else self.task

    @property
    def unusual(self) -> str:
        """What differs from the defaults of a run, with a comma before each."""
        usual = TrainOptions()
        parts = [
            str(value)
            for value, default in (
                (self.decisions, usual.decisions),
                (self.device, usual.device),
                (self.evaluator, usual.evaluator),
            )
            if value != default
        ]
        parts += [f"bits {' '.join(map(str, self.bits))}"] if self.bits else []
        parts += [f"pinned {self.pinned if isinstance(self.pinned, str) else dict(self.pinned)}"] if self.pinned else []
        return "".join(f", {part}" for part in parts)


@dataclass(frozen=True)
class Case:
    """A setting under budgets."""

    setting: Setting
    """The setting."""
    budgets: tuple[str, ...]
    """Budget of each metric as it was given: a ratio of the 8-bit cost, or a quantity with its unit."""

    @property
    def title(self) -> str:
        """How it is called: ``digits, size 0.4``."""
        pairs = zip(self.setting.metrics, self.budgets, strict=True)
        budgets = ", ".join(f"{metric} {budget}" for metric, budget in pairs)
        return f"{self.setting.name}, {budgets}{self.setting.unusual}"

    @property
    def train_options(self) -> TrainOptions:
        """The options of a run that make this case's environment."""
        setting = self.setting
        return TrainOptions(
            task=setting.task,
            budget=dict(zip(setting.metrics, self.budgets, strict=True)),
            device=setting.device,
            decisions=setting.decisions,
            bits=None if setting.bits is None else list(setting.bits),
            pinned=dict(setting.pinned) if isinstance(setting.pinned, tuple) else setting.pinned,
            evaluator=setting.evaluator,
        )


@dataclass(frozen=True)
class Point:
    """An evaluated allocation, on the search split."""

    bits: Bits
    """Its bits."""
    correct: int
    """Samples classified correctly."""
    loss: float
    """Mean cross-entropy in nats."""
    costs: Mapping[str, float]
    """Cost in at least the budgeted metrics, SI units."""


@dataclass(frozen=True)
class Search:
    """What an agent found with one seed in one case."""

    case: Case
    """What was searched."""
    folder: str
    """The folder, as it was given."""
    benchmark: str | None
    """Name of the benchmark that it is part of."""
    agent: str
    """Agent; with the constraint, unless that is ``mask``."""
    seed: int
    """Seed."""
    samples: int
    """Samples of the search split."""
    curve: np.ndarray
    """Correct predictions of the best feasible allocation after each evaluation, or `NOTHING`, int64 (N,)."""
    best: Point | None
    """Best feasible allocation: by accuracy, then loss; None if none was feasible."""
    fronts: Mapping[str, tuple[Point, ...]]
    """By metric: the feasible allocations that no other one beats in accuracy and cost, by ascending cost."""
    measured: float = 0.0
    """What the agent measured besides, in evaluations' worth of work."""
    asked: int = 0
    """Evaluations that it was to make."""
    final: tuple[str, ...] = ()
    """What the run's own final table says, on the test split."""


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's files say besides its searches."""

    folder: str
    """The folder, as it was given."""
    name: str
    """Name of the suite, told apart from others of the report."""
    leaderboard: Mapping[str, Any]
    """Content of `leaderboard.json`."""
    curves: Mapping[str, Any]
    """Content of `curves.json`."""
    cases: Mapping[tuple[str, float], Case]
    """Cases by task and budget."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says besides its episodes."""

    folder: str
    """The folder, as it was given."""
    title: str
    """The case, the agent and the seed."""
    report: Report | None
    """The final table; None if the run has not ended."""
    config: str
    """Content of `config.yaml`."""
    environment: Mapping[str, str]
    """Versions and machine by name."""
    files: tuple[Path, ...]
    """The files that are there for reading."""


@dataclass
class Sources:
    """Everything that was read."""

    searches: list[Search] = field(default_factory=list)
    """All searches."""
    runs: list[Run] = field(default_factory=list)
    """Single runs, in the order given."""
    benchmarks: list[Benchmark] = field(default_factory=list)
    """Benchmarks, in the order given."""
    missing: list[str] = field(default_factory=list)
    """What folders lack, a sentence each."""


def undominated(costs: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Returns which points no other beats: indices by strictly ascending cost and strictly ascending correct counts.

    Args:
        costs: Float64 (n,).
        correct: Whole numbers (n,).
    """
    order = np.lexsort((-correct, costs))
    best_before = np.maximum.accumulate(correct[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = correct[order][1:] > best_before[:-1]
    return order[better]


def merge_fronts(fronts: Sequence[Sequence[Point]], metric: str) -> list[Point]:
    """Returns the points of several fronts that none of the others beats, by ascending cost."""
    points = [point for front in fronts for point in front]
    costs = np.array([point.costs[metric] for point in points])
    return [points[index] for index in undominated(costs, np.array([point.correct for point in points], dtype=int))]
