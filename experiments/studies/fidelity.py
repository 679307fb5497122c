"""What `bench_fidelity` measures: allocations at one budget, each priced by cheap rewards and by full fine-tuning.

Everything measured is kept in a journal in the cache until a benchmark is complete, so that one that is stopped goes on
where it was.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from experiments.options.console import announcements
from experiments.runs.progress import ProgressView
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.files import cache_dir, content_hash
from quantenv.core.processes import end_with_parent, handed_on, process_context, take
from quantenv.core.reading import Schema, fit
from quantenv.core.records import read_record, write_record
from quantenv.core.signals import ENDING
from quantenv.evaluation import Evaluation, Evaluator, make_evaluator
from quantenv.evaluation.pool.pool import with_prepared
from quantenv.evaluation.post_training import numerics
from quantenv.evaluation.store.store import OFF
from quantenv.hardware import Budget, CostTable, check_feasible
from quantenv.hardware.budget import TOLERANCE
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Split, Task
from quantenv.training import FinetuneConfig, finetune

#: Cheap evaluations by name: a registered evaluator, and the post-training steps that are added to the task's scheme.
REWARDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ptq": ("ptq", ()),
    "ptq, batch-norm": ("ptq", ("batch-norm",)),
    "ptq, all corrections": ("ptq", ("equalisation", "bias", "batch-norm")),
    "finetune, 1 epoch": ("finetune", ()),
    "finetune-haq, 1 epoch": ("finetune-haq", ()),
}
#: Allocations tried for each one that is wanted before the budget is said to leave too few.
ATTEMPTS = 100


Job = tuple[Allocation, FinetuneConfig]


@dataclass(frozen=True)
class Measured:
    """An evaluation and what it took."""

    evaluation: Evaluation
    """On the search split."""
    seconds: float
    """Processor time of this process, which other work on the machine does not lengthen."""


@dataclass(frozen=True)
class Trained:
    """One run of the full recipe."""

    search: Evaluation
    """Of its best checkpoint, which was chosen on it, on the search split."""
    test: Evaluation
    """Of the same on the test split."""
    seconds: float
    """As in `Measured`."""


Kept = TypeVar("Kept", Measured, Trained)


class _Items(Schema, frozen=True):
    """What a journal's file holds."""

    items: dict[str, dict[str, Any]]


class Journal:
    """Results by key, written to a file after each one; the file is removed in the end."""

    def __init__(self, path: Path) -> None:
        """Reads what a benchmark that was stopped left, if anything.

        Raises:
            QuantenvError: If the file is damaged.
        """
        self.path, self._items = path, {}
        if path.exists():
            self._items = read_record(path, _Items, what="journal of a benchmark").items

    def get(self, key: str, kind: type[Kept]) -> Kept | None:
        """Returns a result, or None if there is none.

        Raises:
            QuantenvError: If the file holds something else under this key.
        """
        if key not in self._items:
            return None
        return fit(self._items[key], kind, f"The journal of a benchmark {self.path}, {key!r},")

    def put(self, key: str, item: Measured | Trained) -> None:
        """Keeps a result."""
        self._items[key] = asdict(item)
        write_record(self.path, {"items": self._items})

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)


def journal_of(task: Task) -> Journal:
    """Opens the journal of a task; its keys hold all else that the results depend on."""
    return Journal(cache_dir() / "bench_fidelity" / f"{task.identity}.json")


def reduced(task: Task, **samples: int | None) -> Task:
    """Returns a task with fewer samples, drawn by a fixed permutation.

    Args:
        task: The task.
        samples: Samples of each split, at most; None leaves it as it is.

    Raises:
        QuantenvError: If a split would be left without samples.
    """
    splits = dict(task.splits)
    for name, count in samples.items():
        if count is not None and count < 1:
            raise QuantenvError(f"The {name} split is to have {count} samples: expected at least 1.")
        if count is not None and count < len(splits[name]):
            chosen = torch.randperm(len(splits[name]), generator=torch.Generator().manual_seed(0))[:count]
            splits[name] = Split(splits[name].inputs[chosen], splits[name].labels[chosen])
    return dataclasses.replace(task, splits=splits)


def draw_allocations(
    task: Task, table: CostTable, budget: Budget, bits: Sequence[int], activation_bits: int, count: int, seed: int
) -> list[Allocation]:
    """Draws different allocations that no further bit fits into, so that all cost about the same.

    The first is the largest uniform one within the budget, if there is one. The others start from random bits, lose
    some in random layers until they meet the budget, then gain some in random layers until nothing more fits.

    Args:
        task: The task.
        table: Costs in the budget's metric.
        budget: The budget.
        bits: Weight bits on offer.
        activation_bits: Bits of all activations.
        count: How many.
        seed: Of the draws.

    Returns:
        The allocations.

    Raises:
        InfeasibleBudgetError: If no allocation meets the budget.
        QuantenvError: If the budget leaves fewer of them.
    """
    options = np.array(sorted(bits))
    limit, layers = budget.limit * (1 + TOLERANCE), len(task.layers)
    allowed = np.zeros(table.values.shape, dtype=bool)
    allowed[:, options - 1, activation_bits - 1] = True
    check_feasible([budget], {budget.metric: table}, allowed)
    costs = table.values[:, options - 1, activation_bits - 1]  # (L, options)
    rows, rng = np.arange(layers), np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    uniform = [index for index in range(len(options)) if costs[:, index].sum() <= limit]
    if uniform:
        found[(uniform[-1],) * layers] = None
    for _ in range(ATTEMPTS * count):
        if len(found) >= count:
            break
        chosen = rng.integers(0, len(options), layers)
        while costs[rows, chosen].sum() > limit:
            chosen[rng.choice(np.flatnonzero(chosen > 0))] -= 1
        while True:
            more = np.minimum(chosen + 1, len(options) - 1)
            grown = costs[rows, chosen].sum() - costs[rows, chosen] + costs[rows, more]
            fits = np.flatnonzero((more > chosen) & (grown <= limit))
            if not len(fits):
                break
            chosen[rng.choice(fits)] += 1
        found[tuple(chosen.tolist())] = None
    if len(found) < count:
        raise QuantenvError(
            f"Only {len(found)} different allocations were found at this budget, not {count}: ask for fewer, or choose "
            "a budget farther from the ends of the feasible interval."
        )
    drawn = [options[list(chosen)].tolist() for chosen in list(found)[:count]]
    return [Allocation.make(task.layers, row, activation_bits, task.name, task.scheme) for row in drawn]


def reward_evaluator(name: str, task: Task) -> Evaluator:
    """Makes the evaluator of a reward, which asks no store: what it costs is measured.

    Args:
        name: A name of `REWARDS`.
        task: The task.
    """
    evaluator, steps = REWARDS[name]
    present = task.scheme.split("+")
    added = [step for step in steps if step not in present]
    if added:  # a task with the same scheme stays the same object: its calibration is shared
        task = dataclasses.replace(task, scheme="+".join([*present, *added]))
    return make_evaluator(evaluator, task, OFF)


def measure_reward(
    name: str, task: Task, allocations: Sequence[Allocation], bits: Sequence[int], journal: Journal
) -> list[Measured]:
    """Evaluates each allocation on its own on the search split, as a search does.

    Args:
        name: A name of `REWARDS`.
        task: The task.
        allocations: The allocations.
        bits: Weight bits on offer: post-training evaluators round weights to each of them before anything is timed.
        journal: Where results are kept.

    Returns:
        What was measured, in order.
    """
    evaluator = reward_evaluator(name, task)
    if name.startswith("ptq"):
        evaluator.evaluate([Allocation.make(task.layers, bit, allocations[0].activation_bits) for bit in bits])
    results = []
    with ProgressView(announcements(), f"{task.name}: {name}", len(allocations)) as view:
        for done, allocation in enumerate(allocations, start=1):
            key = f"{evaluator.identity} {allocation.hash}"
            if journal.get(key, Measured) is None:
                started = time.process_time()
                (evaluation,) = evaluator.evaluate([allocation])
                journal.put(key, Measured(evaluation, time.process_time() - started))
            results.append(_kept(journal, key, Measured))
            view.show(done, f"accuracy {results[-1].evaluation.accuracy:.2%}")
    return results


def train_all(
    task: Task,
    allocations: Sequence[Allocation],
    configs: Sequence[FinetuneConfig],
    journal: Journal,
    workers: int = 1,
    threads: int = 1,
) -> list[list[Trained]]:
    """Runs the full recipe on every allocation; the results do not depend on the number of workers.

    Args:
        task: The task.
        allocations: The allocations.
        configs: The recipe with each of its seeds.
        journal: Where results are kept.
        workers: Processes.
        threads: Threads of torch in each.

    Returns:
        The runs, [allocation][config].
    """
    jobs = [(allocation, config) for config in configs for allocation in allocations]
    runs = iter(train_jobs(task, jobs, journal, workers, threads))
    by_config = [[next(runs) for _ in allocations] for _ in configs]
    return [list(each) for each in zip(*by_config, strict=True)]


def train_jobs(task: Task, jobs: Sequence[Job], journal: Journal, workers: int = 1, threads: int = 1) -> list[Trained]:
    """Fine-tunes allocations; what is stopped goes on from a checkpoint beside the journal.

    Args:
        task: The task.
        jobs: Allocations and recipes.
        journal: Where results are kept.
        workers: Processes.
        threads: Threads of torch in each.

    Returns:
        The runs, in order; they do not depend on the number of workers.
    """
    fixed = [parse_scheme(task.scheme).version, task.identity, *numerics()]
    keys = [content_hash(["qat", *fixed, allocation.hash, config.identity]) for allocation, config in jobs]
    missing = [index for index, key in enumerate(keys) if journal.get(key, Trained) is None]
    work = [(*jobs[index], journal.path.with_name(f"{keys[index]}.safetensors")) for index in missing]
    with ProgressView(announcements(), f"{task.name}: full recipe", len(jobs)) as view, ExitStack() as stack:
        trained = _each(task, work, workers, threads, stack)
        for done, (index, run) in enumerate(zip(missing, trained, strict=True), start=len(jobs) - len(missing) + 1):
            journal.put(keys[index], run)
            journal.path.with_name(f"{keys[index]}.safetensors").unlink()
            view.show(done, f"test accuracy {run.test.accuracy:.2%}, {run.seconds:.1f} s")
    return [_kept(journal, key, Trained) for key in keys]


Work = tuple[Allocation, FinetuneConfig, Path]
#: The task of a worker process, set when it starts.
_task: Task


def _each(task: Task, jobs: Sequence[Work], workers: int, threads: int, stack: ExitStack) -> Iterator[Trained]:
    """Trains in this process, or in others that get the task once."""
    if workers == 1 or not jobs:
        return (_train_one(task, job) for job in jobs)
    pool = ProcessPoolExecutor(workers, process_context(), _start_worker, (with_prepared(task), threads, handed_on()))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool.map(_train_job, jobs)


def _start_worker(task: Task, threads: int, variables: dict[str, str]) -> None:
    take(variables, *ENDING)
    end_with_parent()
    global _task
    _task = task
    torch.set_num_threads(threads)


def _train_job(job: Work) -> Trained:
    return _train_one(_task, job)


def _train_one(task: Task, job: Work) -> Trained:
    started = time.process_time()
    allocation, config, checkpoint = job
    result = finetune(task, allocation, config, checkpoint=checkpoint)
    seconds = time.process_time() - started
    return Trained(result.search, result.test, seconds)


def _kept(journal: Journal, key: str, kind: type[Kept]) -> Kept:
    kept = journal.get(key, kind)
    assert kept is not None
    return kept
