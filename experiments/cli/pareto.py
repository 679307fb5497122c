"""`quantenv pareto`: one run gives the whole front of accuracy against a cost, instead of one point under one budget.

Two ways. A policy conditioned on the budget: any learner, in an environment that draws the budget of each episode and
shows it (`quantenv.envs.budget_sweep`); at the end it plays once at every budget. Or NSGA-II with two objectives.
Either way the front is that of everything evaluated, and every evaluation counts.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Agent, make_agent
from agents.base import make_config
from experiments.cli.search_options import NSGA2, ParetoOptions
from experiments.options.agents import resolved_options
from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options, write_options
from experiments.options.signals import GracefulStop, Interrupted
from experiments.options.task_source import with_absolute_paths
from experiments.runs.episodes import Episode, EpisodeLog
from experiments.runs.folder_lock import sole_writer
from experiments.runs.pareto_report import ParetoReport, draw, make_report, print_report
from experiments.runs.progress import ProgressView
from experiments.runs.recorder import EpisodeRecorder
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text
from quantenv.envs.budget_sweep import BudgetSweepEnv
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.store.store import OFF, open_store
from quantenv.evaluation.table.shipped import resolve_task


def main(arguments: Sequence[str]) -> int:
    """Finds a front, prints it and writes it to a folder.

    Args:
        arguments: The command line after ``pareto``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted; the front so far is printed then, too.

    Raises:
        QuantenvError: For a mistake in the options.
        InfeasibleBudgetError: If no allocation meets the budget.
    """
    options = parse_options(ParetoOptions, "pareto", arguments)
    make_config(options.agent, options.agent_options)  # before the task is made
    torch.set_num_threads(options.threads)
    options, env = prepare(options)
    with GracefulStop() as stop:
        report, code = search(options, env, stop)
    say = results()
    if options.json:
        say.print(report.to_json(), markup=False, highlight=False, soft_wrap=True)
    else:
        print_report(report, say)
    return code


def prepare(options: ParetoOptions) -> tuple[ParetoOptions, QuantizationEnv]:
    """Returns the options with all that they leave open, and the environment: a `BudgetSweepEnv` for a policy.

    Raises:
        QuantenvError: For a mistake in the options.
        InfeasibleBudgetError: If no allocation meets the budget.
    """
    filled = resolved_options(options.agent, options.task, options.agent_options)
    options = replace(with_absolute_paths(options), agent_options=filled)
    task = resolve_task(options.task, options.source)
    evaluator = make_evaluator(options.evaluator, task, open_store(options.store) or OFF)
    common: dict[str, Any] = {
        "metric": options.metric,
        "budget": options.budget,
        "device": options.device,
        "decisions": options.decisions,
        "bits": options.bits,
        "evaluator": evaluator,
    }
    if options.agent == NSGA2:
        return options, QuantizationEnv(task, **common)
    return options, BudgetSweepEnv(task, levels=options.levels, **common)


def search(options: ParetoOptions, env: QuantizationEnv, stop: GracefulStop) -> tuple[ParetoReport, int]:
    """Searches and writes the run's folder.

    Args:
        options: What to run.
        env: The environment: a `BudgetSweepEnv` for a policy.
        stop: Says when to end early.

    Returns:
        The report, and the exit code.
    """
    recorder = EpisodeRecorder(env, env.reference.samples)
    agent = _make_agent(options, recorder)
    folder = _new_folder(options)
    with sole_writer(folder, "quantenv pareto"):
        return _search_in(folder, options, env, agent, recorder, stop)


def _search_in(
    folder: Path,
    options: ParetoOptions,
    env: QuantizationEnv,
    agent: Agent,
    recorder: EpisodeRecorder,
    stop: GracefulStop,
) -> tuple[ParetoReport, int]:
    announcements().print(f"Folder: {folder}")
    episodes: list[Episode] = []
    log = EpisodeLog(folder / "episodes.jsonl")
    code = 0
    with ProgressView(announcements(), "front", options.evaluations) as view:

        def show(episode: Episode) -> None:
            view.show(episode.evaluation, f"best accuracy {max(each.accuracy for each in episodes):.2%}")

        recorder.listeners = [log, episodes.append, show, stop.check]
        try:
            play(recorder, lambda observation, mask: int(np.flatnonzero(mask)[0]), {"level": 0})
            _learn(agent, recorder, options)
            agent.save(folder / "agent.safetensors")
        except Interrupted as interruption:
            code = interruption.exit_code
        finally:
            log.close()
    report = make_report(env, options.metric, episodes, options.agent, options.seed)
    write_text(folder / "front.json", report.to_json() + "\n")
    draw(report, folder / "front.png")
    return report, code


def play(
    recorder: EpisodeRecorder, act: Callable[[np.ndarray, np.ndarray], int], options: dict[str, Any] | None = None
) -> None:
    """Plays one episode.

    Args:
        recorder: The environment.
        act: Chooses an action by observation (F,) and mask (n,).
        options: Of the reset.
    """
    observation, info = recorder.reset(options=options)
    ended = False
    while not ended:
        observation, _, ended, _, info = recorder.step(act(observation, info["action_mask"]))


def _learn(agent: Agent, recorder: EpisodeRecorder, options: ParetoOptions) -> None:
    """Spends the rest of the evaluations."""
    left = options.evaluations - recorder.evaluations
    if options.agent == NSGA2:
        agent.learn(left, lambda metrics: None)
        return
    agent.learn(left - options.levels, lambda metrics: None)
    for level in range(options.levels):
        agent.start_episode()
        play(recorder, agent.act, {"level": level})


def _make_agent(options: ParetoOptions, env: EpisodeRecorder) -> Agent:
    agent = make_agent(options.agent, env, options.seed, options.agent_options)
    if options.agent != NSGA2:
        return agent
    from agents.search.nsga2_front import NSGA2FrontAgent  # Optuna is an extra

    return NSGA2FrontAgent(env, options.seed, agent.config)


def _new_folder(options: ParetoOptions) -> Path:
    """Makes the run's folder, the first free one of its name, with its config.

    Raises:
        QuantenvError: If it cannot be made.
    """
    parent = Path(options.runs) / Path(options.task).stem / "pareto"
    stem = f"{options.agent}-{options.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            number += 1
            with suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise QuantenvError(f"Cannot make a folder in {parent}: {error.strerror}.") from error
    write_options(folder / "config.yaml", options, "pareto", "front")
    return folder
