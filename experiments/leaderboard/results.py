"""What a finished benchmark found, as arrays: every run's best feasible accuracy so far, and what could be found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.leaderboard.folder import BenchmarkFolder
from experiments.leaderboard.schemas import Description
from experiments.leaderboard.suite import BenchmarkOptions, Job
from experiments.runs.comparison import best_uniform
from experiments.runs.parts import make_env
from quantenv.core.errors import QuantenvError
from quantenv.envs.regret import Regret
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.table.shipped import resolve_task

#: Before a run has evaluated anything feasible.
NOTHING = -1


@dataclass(frozen=True)
class Case:
    """A task under a budget, and what is known of its solutions; counts are of samples of the search split."""

    task: str
    """Task."""
    metric: str
    """Budgeted metric."""
    budget: float
    """Ratio of the cost at 8 bits."""
    limit: float
    """The same in SI units."""
    samples: int
    """Samples of the search split."""
    best: int
    """Correct predictions of the best feasible allocation."""
    exact: bool
    """Whether `best` is the optimum of a table; else it is the best that any run of this benchmark found."""
    uniform: int | None
    """Correct predictions of the best feasible uniform allocation, which needs no search; None if none is feasible."""
    feasible: int | None
    """Feasible allocations of the table."""
    tied: int | None
    """Those of them that are as accurate as the best."""

    @property
    def sampling_error(self) -> float:
        """Binomial standard error of the best accuracy, in percentage points."""
        p = self.best / self.samples
        return 100 * math.sqrt(p * (1 - p) / self.samples)

    def regret(self, correct: np.ndarray) -> np.ndarray:
        """Returns how far counts are from the best, in percentage points; inf for `NOTHING`."""
        return np.where(correct == NOTHING, np.inf, 100 * (self.best - correct) / self.samples)

    def score(self, correct: np.ndarray) -> np.ndarray | None:
        """Returns the normalised score of counts: (found - uniform) / (best - uniform).

        0 is the best feasible uniform allocation, what one has without a search; 1 is the best feasible allocation.
        Negative: worse than uniform; -inf for `NOTHING`. None where uniform is infeasible or as good as the best.
        """
        if self.uniform is None or self.uniform >= self.best:
            return None
        return np.where(correct == NOTHING, -np.inf, (correct - self.uniform) / (self.best - self.uniform))


@dataclass(frozen=True)
class Runs:
    """An agent's searches in a case, one for each seed."""

    found: np.ndarray
    """Correct predictions of the best feasible allocation after each evaluation, int64 (seeds, N), or `NOTHING`."""
    environment_seconds: np.ndarray
    """Wall time in the environment with its evaluations, float64 (seeds,)."""
    agent_seconds: np.ndarray
    """Wall time of the agent itself, float64 (seeds,)."""
    equivalent_evaluations: float
    """What the agent measured besides, in evaluations' worth of work: the most of its seeds, others may reuse it."""


@dataclass(frozen=True)
class Results:
    """A finished benchmark."""

    options: BenchmarkOptions
    """What was run."""
    cases: Mapping[tuple[str, float], Case]
    """Cases by task and budget, in the suite's order."""
    runs: Mapping[tuple[str, float, str], Runs]
    """Searches by task, budget and agent; agents that cannot search a task are missing."""

    @cached_property
    def agents(self) -> list[str]:
        """The agents that have searched, sorted."""
        return sorted({agent for _, _, agent in self.runs})

    def regret(self, case: Case, agent: str) -> np.ndarray:
        """Returns the regret of the best found so far in percentage points, float64 (seeds, N)."""
        return case.regret(self.runs[case.task, case.budget, agent].found)


def load_results(folder: BenchmarkFolder) -> Results:
    """Reads a benchmark's evaluations.

    Raises:
        QuantenvError: If a file is damaged, or the files do not belong together.
    """
    options = folder.options()
    descriptions = folder.read_jobs()
    table = folder.read_evaluations(("task", "budget", "agent", "seed", "evaluation", "correct", "feasible", "samples"))
    shape = (len(descriptions), options.evaluations)
    _check_rows(folder, table, descriptions, shape)
    correct = table["correct"].to_numpy().astype(np.int64).reshape(shape)
    feasible = table["feasible"].to_numpy().reshape(shape)
    found = np.maximum.accumulate(np.where(feasible, correct, NOTHING), axis=1)
    members: dict[tuple[str, float, str], list[int]] = {}
    for index, job in enumerate(descriptions):
        members.setdefault((job.task, job.budget, job.agent), []).append(index)
    runs = {}
    for key, indices in members.items():
        jobs = [descriptions[index] for index in indices]
        runs[key] = Runs(
            found=found[indices],
            environment_seconds=np.array([job.environment_seconds for job in jobs]),
            agent_seconds=np.array([job.agent_seconds for job in jobs]),
            equivalent_evaluations=max(job.equivalent_evaluations for job in jobs),
        )
    cases = {}
    for task in options.tasks:
        for budget in options.budgets:
            of_case = [run.found for key, run in runs.items() if key[:2] == (task, budget)]
            if of_case:
                cases[task, budget] = _case(options, task, budget, int(max(run.max() for run in of_case)))
    return Results(options, cases, runs)


def _case(options: BenchmarkOptions, task_name: str, budget: float, best_found: int) -> Case:
    job = Job(
        task_name,
        options.metric,
        budget,
        "random",
        0,
        options.evaluations,
        options.device,
        options.decisions,
        options.constraint,
    )
    task = resolve_task(task_name)
    train = job.train_options
    evaluator = make_evaluator(train.evaluator, task)
    _, env = make_env(train, task, evaluator)
    uniform = best_uniform(env, evaluator)
    known = None if env.table is None else Regret(env.table, env.budgets, env.tables, env.walk).optimum
    uniform_correct = evaluator.evaluate([uniform])[0].correct if uniform else None
    return Case(
        task=task_name,
        metric=options.metric,
        budget=budget,
        limit=env.budgets[0].limit,
        samples=evaluator.reference.samples,
        best=known.best.evaluation.correct if known else max(best_found, uniform_correct or NOTHING),
        exact=known is not None,
        uniform=uniform_correct,
        feasible=known.feasible if known else None,
        tied=known.tied if known else None,
    )


def _check_rows(
    folder: BenchmarkFolder, table: Any, descriptions: Sequence[Description], shape: tuple[int, int]
) -> None:
    """Checks that the Parquet file holds N rows for each described search, in order."""
    sound = table.num_rows == shape[0] * shape[1]
    if sound:
        for name in ("task", "budget", "agent", "seed"):
            values = table[name].to_numpy().reshape(shape)
            expected = np.array([getattr(job, name) for job in descriptions])
            sound &= bool((values == expected[:, None]).all())
        sound &= bool((table["evaluation"].to_numpy().reshape(shape) == np.arange(1, shape[1] + 1)).all())
    if not sound:
        raise QuantenvError(
            f"{folder.evaluations} does not hold the searches that {folder.jobs.name} describes, in their order: run "
            "the benchmark again, which makes both from its parts."
        )
