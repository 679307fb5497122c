"""The parts that every command builds from a run's options: the task, the evaluator and the environment."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import gymnasium

from agents.base import Agent, make_config
from experiments.options.runs import TrainOptions
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation import make_evaluator, make_pool
from quantenv.evaluation.base import Evaluator
from quantenv.evaluation.store.store import EvaluationStore
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.shipped import resolve_task
from quantenv.hardware import load_device
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Task, TaskSource
from quantenv.training import check_recipe


def check_names(options: TrainOptions) -> None:
    """Looks up what can be looked up at once, before a task's network is prepared.

    Raises:
        QuantenvError: If the agent, one of its options or the device is unknown, or an option is out of range.
    """
    make_config(options.agent, options.agent_options)
    load_device(options.device)


def find_task(
    name: str, scheme: str | None, source: TaskSource | None = None, allocation: Allocation | None = None
) -> Task | EvaluationTable:
    """Makes a registered task, or finds a table of one, under a quantization scheme.

    Args:
        name: A registered name.
        scheme: The scheme; None means its own.
        source: Data, network and weights of a task that does not bring its own, its channel groups, and what was
            prepared of it.
        allocation: An allocation whose channel groups, if it has any, are the task's, as it says them.

    Raises:
        QuantenvError: If a name is unknown, a table was made under another scheme, or the task cannot be made.
    """
    if scheme is not None:
        parse_scheme(scheme)  # before a network is prepared
    if allocation is not None and allocation.channels:
        task = find_task(name, scheme, None if source is None else source.whole)
        assert isinstance(task, Task)  # of which no table holds channel groups
        return dataclasses.replace(task, channel_groups=allocation.groups)
    return resolve_task(name, source, scheme)


def check_fine_tuning(options: TrainOptions, task: Task | EvaluationTable) -> None:
    """Checks at once what fine-tuning would refuse when the search is over.

    Raises:
        QuantenvError: If the recipe does not fit the task: see `quantenv.training.check_recipe`.
    """
    if isinstance(task, Task):
        check_recipe(task, options.qat)


@contextmanager
def search_evaluator(
    options: TrainOptions, task: Task | EvaluationTable, store: EvaluationStore | str
) -> Iterator[Evaluator]:
    """Gives a run's evaluator, and ends its workers, if it has any, however the run ends.

    Args:
        options: The run's options.
        task: The task or table of that name.
        store: Where evaluations are kept.

    Yields:
        The evaluator.

    Raises:
        QuantenvError: If a name is unknown or the workers cannot start.
    """
    if options.workers == 1:
        yield make_evaluator(options.evaluator, task, store)
        return
    arguments = (options.evaluator, task, store, options.workers, options.threads, options.pool, options.ray_address)
    with make_pool(*arguments) as pool:
        yield pool


def make_env(
    options: TrainOptions, task: Task | EvaluationTable, evaluator: Evaluator
) -> tuple[gymnasium.Env, QuantizationEnv]:
    """Makes a run's environment.

    Args:
        options: The run's options.
        task: The task or table of that name.
        evaluator: Prices allocations on the search split.

    Returns:
        The environment as Gymnasium wraps it, and the bare one.

    Raises:
        QuantenvError: If a name is unknown or a value is out of range.
        InfeasibleBudgetError: If no allocation meets the budget.
    """
    reward: dict[str, Any] = {"reward_scale": 1.0, "reward_weights": options.reward_weights or None}
    env = gymnasium.make(
        "quantenv/HAQSwitched-v0" if options.haq else "quantenv/HAQ-v0",
        task=task,
        metric=options.metric,
        budget=options.budget,
        device=options.device,
        decisions=options.decisions,
        bits=options.bits,
        observation=options.observation,
        constraint=options.constraint,
        constraint_options=options.constraint_options,
        reward=options.reward,
        activation_bits=options.activation_bits,
        pinned=options.pinned,
        evaluator=evaluator,
        **({"switches": options.haq} if options.haq else reward),
    )
    return env, cast(QuantizationEnv, env.unwrapped)


def measured_evaluations(agent: Agent, env: QuantizationEnv) -> float:
    """Returns what was measured for a search besides the evaluations that it counts, in evaluations' worth of work.

    Args:
        agent: The agent, which says as ``equivalent_evaluations`` what it measured itself.
        env: Its environment, whose observations may show sensitivities.
    """
    return float(getattr(agent, "equivalent_evaluations", 0.0)) + env.measured_evaluations
