"""One search of a benchmark, from its description to every evaluation it made."""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper

from agents import make_agent
from agents.base import vectorize
from experiments.leaderboard.suite import Job
from experiments.runs.episodes import Episode
from experiments.runs.parts import make_env, measured_evaluations
from experiments.runs.recorder import EpisodeRecorder
from quantenv.core.errors import QuantenvError
from quantenv.envs.regret import Regret
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.table.shipped import resolve_task


@dataclass(frozen=True)
class Record:
    """Every evaluation of one search, N of them, in order."""

    bits: tuple[str, ...]
    """Weight bits of all layers, a digit each, and activation bits: ``2468/8888``; length N."""
    correct: np.ndarray
    """Samples of the search split classified correctly, int32 (N,)."""
    loss: np.ndarray
    """Mean cross-entropy in nats, float64 (N,)."""
    cost: np.ndarray
    """Cost in the budgeted metric, SI units, float64 (N,)."""
    feasible: np.ndarray
    """Whether the budget is met, bool (N,)."""
    reward: np.ndarray
    """Reward of the episode, float64 (N,)."""
    regret: np.ndarray
    """Best feasible accuracy of the table less this one, 0-1, float64 (N,): inf if infeasible, nan without a table."""
    samples: int
    """Samples of the search split."""
    sampling_error: float
    """Binomial standard error of the best feasible accuracy, 0-1; nan without a table."""
    config: Mapping[str, Any]
    """The agent's options, all of them."""
    evaluator_identity: str
    """Content hash of weights, splits, scheme and settings."""
    equivalent_evaluations: float
    """What was measured besides: sensitivities that the agent starts from or its observations show, in evaluations'
    worth of work."""
    environment_seconds: float
    """Wall time in the environment: stepping, evaluating, recording."""
    agent_seconds: float
    """Wall time of the rest: the agent's own."""


@dataclass(frozen=True)
class Refusal:
    """An agent that cannot search a task, and says so."""

    sentence: str
    """Its words."""


class Stopwatch(gymnasium.Wrapper):
    """Measures the time that is spent in an environment and its copies."""

    def __init__(self, env: gymnasium.Env) -> None:
        """Starts at 0."""
        super().__init__(env)
        self.seconds = 0.0

    def reset(self, **options: Any) -> Any:
        """Starts an episode."""
        began = time.perf_counter()
        result = self.env.reset(**options)
        self.seconds += time.perf_counter() - began
        return result

    def step(self, action: Any) -> Any:
        """Takes a decision."""
        began = time.perf_counter()
        result = self.env.step(action)
        self.seconds += time.perf_counter() - began
        return result

    def action_masks(self) -> np.ndarray:
        """Returns which actions the decision at hand allows, bool (n_actions,)."""
        return self.env.get_wrapper_attr("action_masks")()

    def vectorize(self, num_envs: int) -> "TimedCopies":
        """Makes copies of the environment whose time counts here."""
        return TimedCopies(vectorize(self.env, num_envs), self)


class TimedCopies(VectorWrapper):
    """Copies in lock-step whose time is measured."""

    def __init__(self, env: VectorEnv, stopwatch: Stopwatch) -> None:
        """Wraps the copies that an environment's `vectorize` made."""
        super().__init__(env)
        self._stopwatch = stopwatch

    def reset(self, **options: Any) -> Any:
        """Begins an episode in every copy."""
        began = time.perf_counter()
        result = self.env.reset(**options)
        self._stopwatch.seconds += time.perf_counter() - began
        return result

    def step(self, actions: Any) -> Any:
        """Takes a decision in every copy."""
        began = time.perf_counter()
        result = self.env.step(actions)
        self._stopwatch.seconds += time.perf_counter() - began
        return result


def run_job(job: Job, store: str | None = None) -> Record:
    """Runs one search.

    Args:
        job: The search.
        store: Where evaluations of a network are kept; see `quantenv.evaluation.make_evaluator`. Tables need none.

    Returns:
        What it evaluated.

    Raises:
        QuantenvError: If the agent cannot search this task, or does not make the evaluations it was asked for.
    """
    torch.set_num_threads(1)
    task = resolve_task(job.task)
    options = job.train_options
    evaluator = make_evaluator(options.evaluator, task, store)
    env, bare = make_env(options, task, evaluator)
    recorder = EpisodeRecorder(env, evaluator.reference.samples)
    episodes: list[Episode] = []
    recorder.listeners = [episodes.append]
    stopwatch = Stopwatch(recorder)
    began = time.perf_counter()
    agent = make_agent(job.agent, stopwatch, job.seed, job.agent_options)
    agent.learn(job.evaluations, lambda metrics: None)
    seconds = time.perf_counter() - began
    if len(episodes) != job.evaluations:
        raise QuantenvError(
            f"Agent {job.agent!r} finished {len(episodes)} episodes instead of {job.evaluations}: learn must finish "
            "exactly as many as it is asked for."
        )
    correct = np.array([episode.correct for episode in episodes], dtype=np.int32)
    feasible = np.array([episode.feasible for episode in episodes])
    samples = evaluator.reference.samples
    regret, sampling_error = np.full(len(episodes), np.nan), float("nan")
    if bare.table is not None:
        known = Regret(bare.table, bare.budgets, bare.tables, bare.walk)
        lost = known.optimum.best.evaluation.correct - correct
        regret, sampling_error = np.where(feasible, lost / samples, np.inf), known.standard_error
    return Record(
        bits=tuple(bits_text(episode.bits) for episode in episodes),
        correct=correct,
        loss=np.array([episode.loss for episode in episodes]),
        cost=np.array([episode.costs[job.metric] for episode in episodes]),
        feasible=feasible,
        reward=np.array([episode.reward for episode in episodes]),
        regret=regret,
        samples=samples,
        sampling_error=sampling_error,
        config=asdict(agent.config),
        evaluator_identity=evaluator.identity,
        equivalent_evaluations=measured_evaluations(agent, bare),
        environment_seconds=stopwatch.seconds,
        agent_seconds=seconds - stopwatch.seconds,
    )


def bits_text(bits: tuple[tuple[int, int], ...]) -> str:
    """Writes the bits of all layers as in `Record.bits`."""
    weights, activations = zip(*bits, strict=True)
    return f"{''.join(map(str, weights))}/{''.join(map(str, activations))}"


def parse_bits(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads what `bits_text` writes: weight bits and activation bits.

    Raises:
        QuantenvError: If it is no such text.
    """
    if not re.fullmatch("([1-8]+)/([1-8]+)", text) or len(text) % 2 == 0 or text[len(text) // 2] != "/":
        raise QuantenvError(
            f"{text[:40]!r} are no bits of an allocation; expected a digit of each layer's weights, a slash, and as "
            "many of activations, such as '2468/8888'."
        )
    weights, _, activations = text.partition("/")
    return tuple(map(int, weights)), tuple(map(int, activations))
