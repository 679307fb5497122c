"""`quantenv train --init-from RUN`: an agent that was trained in one run goes on in another one.

Observations are normalised over each network's layers, so that a policy of one network means something on another; it
must see as many features and choose among as many options. Only weights are handed on: moments of optimisers, replay
and noise start anew.
"""

import shutil
from typing import Any

from agents import Agent, agent_class
from agents.search.ask_tell import AskTellAgent
from agents.search.random import RandomAgent
from experiments.options.runs import TrainOptions
from experiments.runs.run_folder import RunFolder
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import BITS
from quantenv.evaluation.table.shipped import get_table, is_table


def check_source(options: TrainOptions) -> None:
    """Looks at once whether the run to start from can be, before a task's network is prepared.

    Raises:
        QuantenvError: If it is no finished run, or of an agent that has nothing to hand on or is another one.
    """
    if options.init_from is None:
        return
    source = RunFolder.open(options.init_from)
    theirs = source.options().agent
    if theirs != options.agent:
        raise QuantenvError(
            f"--init_from {options.init_from} is a run of agent {theirs!r}, not of {options.agent!r}: give "
            f"--agent {theirs}, or a run of {options.agent!r}."
        )
    if issubclass(agent_class(options.agent), AskTellAgent | RandomAgent):
        raise QuantenvError(
            f"Agent {options.agent!r} learns no policy that another run could start from: leave --init_from out."
        )
    if source.agent.with_suffix(".pt").is_file() and not source.agent.exists():
        raise QuantenvError(
            f"{options.init_from} holds the agent of an earlier version of quantenv, which is not read any more: train "
            "it again."
        )
    if not source.agent.is_file():
        raise QuantenvError(
            f"{options.init_from} holds no {source.agent.name}, which is written when the search has ended: finish it "
            f"with `quantenv train --resume {options.init_from}`."
        )


def start_from(agent: Agent, options: TrainOptions, folder: RunFolder | None) -> None:
    """Gives an agent the weights of another run's; does nothing without ``--init-from``.

    Args:
        agent: Made for this run's environment.
        options: The run's options.
        folder: The run's folder if it is resumed: it keeps a copy of what it started from.

    Raises:
        QuantenvError: If the weights do not fit this run.
    """
    if options.init_from is None:
        return
    if folder is not None:
        agent.load(folder.initial)
        return
    source = RunFolder.open(options.init_from)
    try:
        agent.load(source.agent)
    except QuantenvError as error:
        other = "; ".join(_differences(source.options(), options)) or "nothing"
        raise QuantenvError(
            f"{str(error).rstrip('.')}. What shapes an agent and is not as in {options.init_from}: {other}."
        ) from error


def keep_initial(options: TrainOptions, folder: RunFolder) -> None:
    """Copies the weights that a run starts from into its folder, so that it can be resumed by itself."""
    if options.init_from is not None:
        shutil.copyfile(RunFolder.open(options.init_from).agent, folder.initial)


def _differences(theirs: TrainOptions, ours: TrainOptions) -> list[str]:
    """Says what differs that fixes the shapes of an agent's networks."""
    there, here = _shapes(theirs), _shapes(ours)
    names = dict.fromkeys([*here, *there])
    values = {name: (here.get(name, "default"), there.get(name, "default")) for name in names}
    return [f"{name} ({one} here, {other} there)" for name, (one, other) in values.items() if one != other]


def _shapes(options: TrainOptions) -> dict[str, Any]:
    """Returns what fixes the shapes of an agent's networks, by name."""
    bits, budget, metric = options.bits, options.budget, options.metric
    if bits is None:
        bits = list(get_table(options.task).bits if is_table(options.task) else BITS)
    if isinstance(budget, dict):
        budgets = len(budget)
    elif isinstance(budget, str) and "=" in budget:
        budgets = budget.count("=")
    else:
        budgets = len(metric) if isinstance(metric, list) else metric.count(",") + 1
    return {
        "--observation": options.observation,
        "--decisions": options.decisions,
        "--bits": ",".join(map(str, bits)),
        "number of budgets": budgets,
        **{f"--agent_options.{name}": value for name, value in sorted(options.agent_options.items())},
    }
