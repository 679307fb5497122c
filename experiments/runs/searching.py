"""A search from its options to what it found: what `quantenv train`, `quantenv.search` and `quantenv.resume` all call.

Read it from top to bottom: `prepared` makes what a search runs on, `learn` lets the agent search, and `SearchResult`
fine-tunes and compares what was found.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from agents import Agent, make_agent
from agents.base import Log
from experiments.options.runs import TrainOptions
from experiments.runs.comparison import (
    FineTune,
    best_uniform,
    chance_note,
    compare,
    post_training,
    regret_note,
    verdicts,
)
from experiments.runs.episodes import Episode
from experiments.runs.final_table import Report, limits
from experiments.runs.parts import make_env, measured_evaluations, search_evaluator
from experiments.runs.recorder import EpisodeRecorder, Listener
from experiments.runs.replay import RecordedEvaluator
from experiments.runs.run_folder import RunFolder
from experiments.runs.top_k import TopK
from experiments.runs.transfer import start_from
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store.store import OFF, EvaluationStore, open_store
from quantenv.evaluation.store.stored import through_store
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.hardware import overhead_bytes
from quantenv.tasks import Task
from quantenv.training import FinetuneConfig, FinetuneResult, finetune


@dataclass(frozen=True)
class Setting:
    """What a search runs on."""

    options: TrainOptions
    task: Task | EvaluationTable
    store: EvaluationStore | str
    env: QuantizationEnv
    recorder: EpisodeRecorder
    """The environment as the agent acts in it."""
    agent: Agent
    reference: Evaluation
    """The float network on the search split."""
    identity: str
    """The evaluator's."""
    folder: RunFolder | None
    """Folder of an earlier run that is resumed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Says what of the task a user should know: weights that stay float, a float network no better than chance."""
        if isinstance(self.task, EvaluationTable):
            return ()
        chance = chance_note(self.task.splits["search"].labels.tolist(), self.reference)
        return tuple(note for note in (self.task.float_weights_note, chance) if note)


@contextmanager
def prepared(
    options: TrainOptions,
    task: Task | EvaluationTable,
    recorded: Sequence[Episode] = (),
    folder: RunFolder | None = None,
) -> Iterator[Setting]:
    """Makes what a search runs on, and ends its workers, if it has any; torch has the options' threads meanwhile.

    Args:
        options: What to run.
        task: The task or table.
        recorded: Episodes of an earlier run, which are not evaluated again.
        folder: That run's folder.

    Raises:
        QuantenvError: If an option does not fit the task.
    """
    store = open_store(options.store) or OFF
    with torch_threads(options.threads), search_evaluator(options, task, store) as searching:
        evaluator = RecordedEvaluator(searching, recorded)
        env, bare = make_env(options, task, evaluator)
        recorder = EpisodeRecorder(env, evaluator.reference.samples)
        agent = make_agent(options.agent, recorder, options.seed, options.agent_options)
        start_from(agent, options, folder)
        yield Setting(options, task, store, bare, recorder, agent, evaluator.reference, evaluator.identity, folder)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Gives torch so many threads within: part of what numbers depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learn(setting: Setting, listeners: Sequence[Listener] = (), log: Log = lambda metrics: None) -> None:
    """Lets the agent search.

    Args:
        setting: What it runs on.
        listeners: Called with every episode, in order.
        log: Receives the agent's own training metrics.
    """
    setting.recorder.listeners = list(listeners)
    setting.agent.learn(setting.options.evaluations, log)


@dataclass
class SearchResult:
    """What a search found.

    ``report`` is the final table: that of the run's folder, or `compare`'s when it is first asked for.
    """

    setting: Setting
    episodes: tuple[Episode, ...]
    """Every evaluation, in order: bits, accuracy, loss, costs, reward."""
    top: TopK
    """The best allocations."""
    uniform: Allocation | None
    """The best feasible uniform allocation on the search split; None if there is none."""
    folder: RunFolder | None = None
    """The run's folder, if it has one."""

    @property
    def best(self) -> Allocation | None:
        """The best feasible allocation by search accuracy, then loss; None if none was feasible."""
        env = self.setting.env
        return self.top.best.allocation(env.layers, *env.origin) if self.top.best else None

    @cached_property
    def report(self) -> Report:
        """The final table."""
        return self.compare()

    def finetune(
        self,
        recipe: FinetuneConfig | None = None,
        allocation: Allocation | None = None,
        on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> FinetuneResult:
        """Fine-tunes with quantization.

        Args:
            recipe: Epochs, learning rate and so on; by default the search's option `qat`.
            allocation: By default the best one found.
            on_epoch: Receives every epoch's metrics.

        Raises:
            QuantenvError: If nothing feasible was found, or the search was in a table, which has no network.
        """
        setting, allocation = self.setting, allocation or self.best
        if allocation is None:
            raise QuantenvError("The search found no feasible allocation to fine-tune: raise the budget.")
        if isinstance(setting.task, EvaluationTable):
            raise QuantenvError(
                f"A table has no network to fine-tune: search task {setting.task.task!r} instead of "
                f"{setting.task.name!r}."
            )
        with torch_threads(setting.options.threads):
            return finetune(setting.task, allocation, recipe or setting.options.qat, on_epoch)

    def compare(self) -> Report:
        """Compares what was found with float, uniform 8 and the best uniform allocation, all on the test split.

        After post-training quantization, and after fine-tuning by the option `qat`, unless that has no epochs or the
        search was in a table.
        """

        def fine_tune(name: str, allocation: Allocation) -> FinetuneResult:
            return self.finetune(allocation=allocation)

        trained = isinstance(self.setting.task, Task) and self.setting.options.qat.epochs > 0
        with torch_threads(self.setting.options.threads):
            return table(self, fine_tune if trained else None, complete=True)


def result_of(setting: Setting, episodes: Sequence[Episode], top: TopK, folder: RunFolder | None) -> SearchResult:
    """Returns what was found so far; to be called while the setting's evaluator is open."""
    env = setting.env
    uniform = best_uniform(env, env.evaluator)
    if uniform is not None:
        uniform = dataclasses.replace(uniform, task=env.origin[0], scheme=env.origin[1])
    return SearchResult(setting, tuple(episodes), top, uniform, folder)


def table(result: SearchResult, fine_tune: FineTune | None, complete: bool) -> Report:
    """Makes the final table.

    Args:
        result: What was found.
        fine_tune: Fine-tunes an allocation for a row; None leaves rows after fine-tuning out.
        complete: Whether the search went to its end.
    """
    setting, options, env = result.setting, result.setting.options, result.setting.env
    ptq = post_training(setting.task, options.evaluator)
    stored = ptq if isinstance(ptq, TableEvaluator) else through_store(ptq, setting.store, setting.task.name)
    rows = compare(env, stored, ptq.float_evaluation("test"), result.uniform, result.best, fine_tune)
    notes = [
        f"Scales and biases take {overhead_bytes(env.layers):,.0f} bytes more in every quantized network.",
        f"uniform is the best of all feasible uniform allocations on the search split, found that of "
        f"{len(result.episodes)} evaluations by agent {options.agent!r}, seed {options.seed}.",
    ]
    if isinstance(setting.task, EvaluationTable):
        notes.append(
            f"Post-training rows only: a table has no network to fine-tune. Fine-tune what was found on task "
            f"{setting.task.task!r} with `quantenv finetune --run <run folder>`."
        )
    measured = measured_evaluations(setting.agent, env)
    if measured:
        notes.append(f"Sensitivities were measured besides, which cost as much as {measured:,.1f} evaluations.")
    regret = regret_note(env, result.top.best.accuracy if result.top.best else None)
    return Report(
        complete=complete,
        evaluations=len(result.episodes),
        budgets=limits(env.budgets),
        rows=rows,
        verdicts=verdicts(rows),
        notes=tuple(notes) if regret is None else (*notes, regret),
        measured_evaluations=measured,
    )
