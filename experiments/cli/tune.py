"""`quantenv tune`: looks for an agent's options with Optuna, on seeds that no benchmark uses.

A trial is one choice of options, judged by searches with every budget and tuning seed. The first trial is the options
in force. Trials are drawn and searched in batches of a fixed size: what is found depends neither on `--workers` nor on
how often the tuning was interrupted.
"""

import dataclasses
import importlib
import importlib.resources
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import agent_class
from agents.base import make_config
from experiments.cli.search_options import TuneOptions
from experiments.leaderboard.jobs import Record, Refusal
from experiments.leaderboard.suite import FIRST_TUNING_SEED
from experiments.leaderboard.workers import run_all
from experiments.options.agents import read_sections, resolved_options
from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.options.signals import GracefulStop, Interrupted
from experiments.runs.folder_lock import kept_folder
from experiments.runs.progress import ProgressView
from quantenv.core.errors import QuantenvError, shown, unknown_name
from quantenv.core.files import write_text
from quantenv.core.plain_yaml import dump_plain
from quantenv.core.reading import parse_json
from quantenv.core.typed import checked, short, words

#: Trials that are drawn together.
BATCH = 8
#: File of a tuning's trials, in its folder.
DATABASE = "tuning.sqlite"
#: Digits to which numbers are rounded before they are tried.
DIGITS = 3

Space = Mapping[str, Mapping[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """Tunes, or continues a tuning.

    Args:
        arguments: The command line after ``tune``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options, a folder of another tuning, or if Optuna is not installed.
    """
    options = parse_options(TuneOptions, "tune", arguments)
    optuna = _optuna()
    base = resolved_options(options.agent, options.task, options.agent_options)
    make_config(options.agent, base)
    space = find_space(options)
    in_force = _in_force(options.agent, base, space)
    folder = Path(options.output or f"runs/tune/{Path(options.task).stem}/{options.agent}")
    with kept_folder(folder, "quantenv tune", "the same command"):
        return _tune(optuna, folder, options, base, space, in_force)


def _tune(
    optuna: Any,
    folder: Path,
    options: TuneOptions,
    base: Mapping[str, Any],
    space: Space,
    in_force: Mapping[str, Any],
) -> int:
    """Runs the trials that are missing and writes the best options; see `main`."""
    study = open_study(folder)
    _check_same(study, folder, options, base, space)
    try:
        with GracefulStop() as stop:
            _run(optuna, study, options, base, space, in_force, stop)
    except Interrupted as interruption:
        announcements().print("Interrupted. The same command continues.")
        return interruption.exit_code
    text = _best_yaml(study, _finished(optuna, study), options)
    write_text(folder / "best.yaml", text)
    announcements().print(f"Written to {folder / 'best.yaml'}.", markup=False)
    sys.stdout.write(text)
    return 0


def open_study(folder: Path) -> Any:
    """Opens or begins the study of a folder.

    Raises:
        QuantenvError: If its database is damaged or something else, or Optuna is not installed.
    """
    optuna = _optuna()
    damaged = f"{folder / DATABASE} is damaged, or no database of a tuning: restore it, or choose another --output."
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / DATABASE}", study_name="quantenv", direction="minimize", load_if_exists=True
        )
        finished, recorded = _finished(optuna, study), study.user_attrs.get("tuning", "{}")
    except Exception as error:  # Optuna and the database raise many kinds, according to the cell that is wrong
        raise QuantenvError(f"{damaged} ({shown(str(error), 200)})") from error
    sound = all(isinstance(trial.user_attrs.get("agent_options"), dict) for trial in finished)
    done = [trial for trial in finished if trial.state == optuna.trial.TrialState.COMPLETE]
    if not sound or not all(isinstance(trial.value, float) and math.isfinite(trial.value) for trial in done):
        raise QuantenvError(damaged)
    if not isinstance(recorded, str) or not isinstance(parse_json(recorded, str(folder / DATABASE)), dict):
        raise QuantenvError(damaged)
    return study


def find_space(options: TuneOptions) -> Space:
    """Returns what is varied: for each option of the agent ``{low, high, log}`` or ``{choices}``.

    Raises:
        QuantenvError: If there is no space for the agent, or it is malformed.
    """
    shipped = importlib.resources.files("experiments.configs") / "spaces.yaml"
    spaces = read_sections(Path(options.space) if options.space else shipped)
    if options.agent not in spaces:
        if not options.space:
            raise QuantenvError(
                f"There is no shipped space for agent {options.agent!r}, only for {', '.join(sorted(spaces))}: "
                "give one by --space."
            )
        raise unknown_name(f"space in {options.space}:", options.agent, spaces)
    space = {name: span for name, span in spaces[options.agent].items() if name not in options.agent_options}
    fields = {each.name: each.type for each in dataclasses.fields(agent_class(options.agent).config_class)}
    for name, span in space.items():
        if name not in fields:
            raise unknown_name(f"option of agent {options.agent!r} in its space:", name, fields)
        if not isinstance(span, dict) or not (set(span) == {"choices"} or {"low", "high"} <= set(span) <= set(SPAN)):
            raise QuantenvError(
                f"The space of option {name!r} is {short(span)}; expected {{low: ..., high: ...}}, perhaps with "
                "log: true, or {choices: [...]}."
            )
        _check_span(name, span, fields[name])
    if not space:
        raise QuantenvError("There is nothing to tune: the space is empty, or --agent_options fixes all of it.")
    return space


#: What describes a number's range.
SPAN = ("low", "high", "log")


def _check_span(name: str, span: Mapping[str, Any], kind: Any) -> None:
    """Raises QuantenvError if a space offers an option what is none of its type, or nothing."""
    where = f"The space of option {name!r}:"
    if "choices" in span:
        if not isinstance(span["choices"], list) or not span["choices"]:
            raise QuantenvError(f"{where} choices is {short(span['choices'])}; expected a list of at least one.")
        for choice in span["choices"]:
            checked(choice, kind, f"{where} a choice")
        return
    if kind not in (int, float):
        raise QuantenvError(f"{where} low and high are for numbers, and this is {words(kind)}: give choices.")
    low, high = (checked(span[end], kind, f"{where} {end}") for end in ("low", "high"))
    log = checked(span.get("log", False), bool, f"{where} log")
    if not low <= high or (log and low <= 0):
        above = " from above 0" if log else ""
        raise QuantenvError(f"{where} it goes from {low} to {high}; expected a range{above}, the lower end first.")


def _in_force(agent: str, base: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Returns the options in force of those that are varied.

    Raises:
        QuantenvError: If the space leaves one out.
    """
    config = agent_class(agent).config_class()
    values = {name: base.get(name, getattr(config, name)) for name in space}
    for name, value in values.items():
        span = space[name]
        if value not in span["choices"] if "choices" in span else not span["low"] <= value <= span["high"]:
            raise QuantenvError(
                f"The space of option {name!r}, {span}, leaves out its value in force, {value}: widen it."
            )
    return values


def _run(
    optuna: Any,
    study: Any,
    options: TuneOptions,
    base: Mapping[str, Any],
    space: Space,
    in_force: Mapping[str, Any],
    stop: GracefulStop,
) -> None:
    """Runs the trials that are missing."""
    distributions = {name: _distribution(optuna, span) for name, span in space.items()}
    states = optuna.trial.TrialState
    for left in study.get_trials(deepcopy=False, states=(states.RUNNING, states.WAITING)):  # of a killed process
        if left.state == states.RUNNING:
            study.tell(left.number, state=states.FAIL)
    with ProgressView(announcements(), "trials", options.trials) as view:
        while (done := len(_finished(optuna, study))) < options.trials:
            # A sampler of its own for each batch, so that a batch is drawn alike whenever the tuning was interrupted.
            study.sampler = optuna.samplers.TPESampler(seed=options.seed + done)
            if not done and not study.get_trials(deepcopy=False, states=(states.WAITING,)):
                study.enqueue_trial(dict(in_force))
            trials = [study.ask(distributions) for _ in range(min(BATCH, options.trials - done))]
            chosen = [{**base, **{name: _rounded(value) for name, value in trial.params.items()}} for trial in trials]
            scores = _scores(options, chosen, stop)
            for trial, agent_options, score in zip(trials, chosen, scores, strict=True):
                trial.set_user_attr("agent_options", agent_options)
                if isinstance(score, str):
                    if not done and trial is trials[0]:
                        raise QuantenvError(f"Agent {options.agent!r} cannot search with the options in force: {score}")
                    study.tell(trial, state=states.PRUNED)
                else:
                    study.tell(trial, score)
            view.show(len(_finished(optuna, study)), f"best so far {study.best_value:.3%}")


def _scores(options: TuneOptions, chosen: Sequence[Mapping[str, Any]], stop: GracefulStop) -> list[float | str]:
    """Judges choices of the agent's options, lower is better; or says why the agent refused one."""
    jobs = {(trial, job.budget, job.seed): job for trial, each in enumerate(chosen) for job in options.jobs(each)}
    owners = {id(job): trial for (trial, _, _), job in jobs.items()}  # two trials may choose the same
    lost: list[list[float]] = [[] for _ in chosen]
    refusals: dict[int, str] = {}
    for job, outcome in run_all(list(jobs.values()), options.workers, "processes", stop):
        trial = owners[id(job)]
        if isinstance(outcome, Refusal):
            refusals[trial] = outcome.sentence
        else:
            lost[trial].append(accuracy_lost(outcome))
    # Sums in an order of their own would make scores depend on which search ended first.
    return [refusals.get(trial, float(np.mean(np.sort(values or [1.0])))) for trial, values in enumerate(lost)]


def accuracy_lost(record: Record) -> float:
    """Returns the regret of a search's best evaluation, or its error where no regret is known, 0-1; 1 if infeasible."""
    error = 1 - record.correct / record.samples
    lost = error if np.isnan(record.regret).all() else record.regret
    return float(np.where(record.feasible, lost, 1.0).min())


def _distribution(optuna: Any, span: Mapping[str, Any]) -> Any:
    if "choices" in span:
        return optuna.distributions.CategoricalDistribution(span["choices"])
    low, high, log = span["low"], span["high"], span.get("log", False)
    whole = isinstance(low, int) and isinstance(high, int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(low, high, log=log)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _finished(optuna: Any, study: Any) -> list[Any]:
    states = optuna.trial.TrialState
    return study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))


def _check_same(study: Any, folder: Path, options: TuneOptions, base: Mapping[str, Any], space: Space) -> None:
    """Raises QuantenvError if a study's trials were judged or drawn otherwise than these would be."""
    free = ("trials", "workers", "output", "space", "agent_options")
    fixed = {name: value for name, value in dataclasses.asdict(options).items() if name not in free}
    wanted = json.dumps({**fixed, "base": dict(base), "space": dict(space)}, sort_keys=True)
    recorded = study.user_attrs.get("tuning")
    if recorded is None:
        study.set_user_attr("tuning", wanted)
    elif recorded != wanted:
        before, now = json.loads(recorded), json.loads(wanted)
        name = next(name for name in now if before.get(name) != now[name])
        raise QuantenvError(
            f"{folder} holds a tuning with other options ({name} is {now[name]}, and was {before.get(name)}): choose "
            "another --output, or repeat the options."
        )


def _best_yaml(study: Any, finished: Sequence[Any], options: TuneOptions) -> str:
    best = study.best_trial
    budgets = ", ".join(f"{budget:g}" for budget in options.budgets)
    comment = (
        f"# By `quantenv tune --agent {options.agent} --task {options.task}`: {len(finished)} trials, {options.metric} "
        f"budgets {budgets}; seeds {FIRST_TUNING_SEED}-{FIRST_TUNING_SEED + options.seeds - 1}.\n"
        f"# Mean accuracy lost after {options.evaluations} evaluations: {best.value:.3%}; before tuning "
        f"{finished[0].value:.3%}.\n"
    )
    return comment + dump_plain({options.task: dict(sorted(best.user_attrs["agent_options"].items()))})


def _optuna() -> Any:
    """Imports Optuna, which only tuning and a few agents need."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise QuantenvError(f"Tuning needs Optuna ({error}): pip install 'quantenv[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
