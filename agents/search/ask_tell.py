"""Optimisers as agents: they ask for candidates to be evaluated and are told what came of them.

A baseline searches allocations, not policies. It still runs *through the environment*, so that counting, masks,
constraints, logging and resuming are those of every other agent: each candidate is played as an episode, and what the
optimiser is told is what the environment executed, which under `project` or a mask may differ from what it asked for.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import msgspec
import numpy as np
from gymnasium.vector import VectorEnv

from agents.base import Log, checked_seed, counts_evaluations, in_force, vectorize
from agents.checkpoint import FORMAT, REMEDY, read_agent
from agents.search.problem import Problem
from agents.search.proxy import measuring_cost
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import write_tensors

#: Most candidates that are asked for at once: a killed run loses what is in flight, and progress is seen by the batch.
LARGEST_BATCH = 32

#: What is read of an episode's last info.
RESULTS = ("executed_actions", "accuracy", "loss", "feasible")

#: Weight of a nat of cross-entropy beside the error, 0-1, in `Results.objective`.
LOSS_WEIGHT = 0.1


@dataclass(frozen=True)
class Results:
    """What came of a batch of k candidates, in the order in which they were asked for."""

    actions: np.ndarray
    """What was executed: one option index per decision, int64 (k, T)."""
    accuracy: np.ndarray
    """Top-1 accuracy on the search split, float64 (k,), 0-1."""
    loss: np.ndarray
    """Mean cross-entropy on the search split in nats, float64 (k,)."""
    feasible: np.ndarray
    """Whether every budget is met, bool (k,)."""
    reward: np.ndarray
    """The environment's reward, float64 (k,); -inf is possible under `reject`."""

    def __len__(self) -> int:
        """Number of candidates, k."""
        return len(self.actions)

    @property
    def objective(self) -> np.ndarray:
        """Error plus a tenth of the loss, float64 (k,): one number to minimise, whatever the reward.

        Accuracy moves in steps of one sample; the loss tells allocations apart that it does not.
        """
        return 1 - self.accuracy + LOSS_WEIGHT * self.loss


@dataclass(frozen=True)
class Found:
    """An evaluated candidate."""

    actions: tuple[int, ...]
    """One option index per decision, length T."""
    accuracy: float
    """Top-1 accuracy on the search split, 0-1."""
    loss: float
    """Mean cross-entropy on the search split in nats."""
    feasible: bool
    """Whether every budget is met."""

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Grows with quality: feasible before infeasible, then higher accuracy, then lower loss."""
        return self.feasible, self.accuracy, -self.loss


class AskTellAgent(ABC):
    """The part of an agent that all baselines share. A baseline fills in `ask`, and `tell` if it learns.

    `learn(N)` charges exactly N evaluations, whatever there is to ask. An optimiser that has nothing more to propose,
    because its candidates are finitely many (the best uniform allocation) or it proposes only one (the ILP's answer),
    answers `ask` with an empty batch. The rest of the evaluations then goes to the best candidate found so far, again
    and again: counted like all others, answered by the store, and not told. Curves of the best found so far stay flat
    there, as they should.

    Attributes:
        env: The environment.
        config: The options in force.
        problem: Decisions, costs and budgets of the environment.
        generator: The only source of randomness.
        best: The best candidate found so far: feasible before infeasible, then higher accuracy, then lower loss, then
            the earlier one. None before the first evaluation.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    together: ClassVar[int] = LARGEST_BATCH
    """Episodes that are played side by side at most."""

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`. Baselines measure what they need on the first `ask`, not here."""
        self.env = env
        self.config: Any = in_force(config, self.config_class)
        seed = checked_seed(seed)
        self.problem = Problem(env)
        self.generator = np.random.default_rng(seed)
        self.best: Found | None = None
        self._seed = seed
        self._evaluations = 0
        self._copies: dict[int, VectorEnv] = {}
        self.start_episode()

    @abstractmethod
    def ask(self, count: int) -> np.ndarray:
        """Proposes candidates.

        Args:
            count: The most that may be proposed, at least 1.

        Returns:
            Option indices, int64 (k, T) with k <= count. k = 0 says that there is nothing more to propose.
        """

    def tell(self, results: Results) -> None:  # noqa: B027, for there may be nothing to learn
        """Learns from what came of the last candidates; the default learns nothing."""

    def metrics(self) -> dict[str, float]:
        """Returns the optimiser's own training metrics after `tell`, by name; the default has none."""
        return {}

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Asks, evaluates and tells until exactly this many further episodes have finished.

        Raises:
            QuantenvError: If there was nothing to propose from the start, or `ask` answers with other than up to
                `count` rows of one option index per decision.
        """
        while evaluations > 0:
            count = min(evaluations, LARGEST_BATCH)
            candidates = np.asarray(self.ask(count), dtype=np.int64)
            if candidates.shape[1:] != (self.problem.n_decisions,) or len(candidates) > count:
                raise QuantenvError(
                    f"Agent {self.name!r} proposed candidates of shape {candidates.shape}: expected up to {count} rows "
                    f"of {self.problem.n_decisions} option indices. This is a mistake in the agent."
                )
            exhausted = not len(candidates)
            if exhausted:
                if self.best is None:
                    raise QuantenvError(
                        f"Agent {self.name!r} has no allocation to propose under these budgets and bits: raise the "
                        "budget, or choose another agent."
                    )
                candidates = np.tile(np.array(self.best.actions), (count, 1))
            results = self._evaluate(candidates)
            self._keep_best(results)
            if not exhausted:
                self.tell(results)
                if metrics := self.metrics():
                    log(metrics)
            evaluations -= len(results)

    @property
    def equivalent_evaluations(self) -> float:
        """What measuring the sensitivities that the agent starts from takes, in evaluations' worth of work."""
        if not hasattr(self.config, "sensitivity"):
            return 0.0
        return measuring_cost(self.env, self.config.sensitivity or None)

    def start_episode(self) -> None:
        """Returns to the first decision of what `act` replays."""
        self._decision = 0

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Replays the best candidate found so far.

        Where the mask forbids its option, as it may in another environment than the one searched, the nearest allowed
        one in bits is taken, the lower one of two (`quantenv.envs.walk.Walk.preference`).

        Raises:
            QuantenvError: If nothing was found yet, or the episode is longer than those searched.
        """
        if self.best is None:
            raise QuantenvError(f"Agent {self.name!r} has found nothing to act by: let it learn, or load a saved one.")
        if self._decision == self.problem.n_decisions:
            raise QuantenvError(
                f"Agent {self.name!r} has made all {self._decision} decisions: call start_episode() before an episode."
            )
        action = self.best.actions[self._decision]
        self._decision += 1
        return self.problem.walk.nearest(action, np.asarray(action_mask, dtype=bool))

    def save(self, path: Path) -> None:
        """Writes the best candidate."""
        best = None
        if self.best is not None:
            best = {
                "actions": list(self.best.actions),
                "accuracy": self.best.accuracy,
                "loss": self.best.loss,
                "feasible": self.best.feasible,
            }
        write_tensors(path, FORMAT, {"agent": self.name, "decisions": self._decisions(), "best": best}, {})

    def load(self, path: Path) -> None:
        """Reads the best candidate; the search itself starts anew.

        Raises:
            QuantenvError: If the file is missing or damaged, is another agent's or fits another environment.
        """
        content, _ = read_agent(path, self.name)
        if content.get("decisions") != self._decisions():
            raise QuantenvError(
                f"{path} was saved for another environment: its decisions and their bits differ from this one's. "
                "Use the environment that it was trained with."
            )
        self.best = self._read_best(path, content.get("best"))
        self.start_episode()

    def _evaluate(self, candidates: np.ndarray) -> Results:
        """Plays candidates, int64 (k, T): several as episodes in lock-step, one in the environment itself."""
        with self.env.unwrapped.unread():  # type: ignore[attr-defined]
            return self._played(candidates)

    def _played(self, candidates: np.ndarray) -> Results:
        seed = None if self._evaluations else self._seed
        self._evaluations += len(candidates)
        if len(candidates) == 1:
            self.env.reset(seed=seed)
            total = 0.0
            for action in candidates[0].tolist():
                _, gained, _, _, info = self.env.step(action)
                total += float(gained)
            reward, final = np.array([total]), {key: [info[key]] for key in RESULTS}
        else:
            if len(candidates) not in self._copies:
                self._copies[len(candidates)] = vectorize(self.env, len(candidates))
            copies = self._copies[len(candidates)]
            copies.reset(seed=seed)
            reward = np.zeros(len(candidates))
            for actions in candidates.T:
                _, rewards, _, _, infos = copies.step(actions)
                reward += rewards
            final = infos["final_info"]
        return Results(
            actions=np.array(final["executed_actions"], dtype=np.int64),
            accuracy=np.array(final["accuracy"], dtype=np.float64),
            loss=np.array(final["loss"], dtype=np.float64),
            feasible=np.array(final["feasible"], dtype=bool),
            reward=reward,
        )

    def _keep_best(self, results: Results) -> None:
        columns = (results.actions, results.accuracy, results.loss, results.feasible)
        for actions, accuracy, loss, feasible in zip(*(column.tolist() for column in columns), strict=True):
            found = Found(tuple(actions), accuracy, loss, feasible)
            if self.best is None or found.rank > self.best.rank:
                self.best = found

    def _decisions(self) -> dict[str, Any]:
        """Describes what candidates mean, as JSON holds it: what a saved one must fit."""
        walk = self.problem.walk
        return {"mode": walk.mode, "bits": list(walk.bits), "groups": walk.groups.tolist()}

    def _read_best(self, path: Path, best: Any) -> Found | None:
        if best is None:
            return None
        try:
            found = msgspec.convert(best, Found, strict=True)
        except msgspec.ValidationError as error:
            raise QuantenvError(f"{path} is damaged: it holds no sound candidate. {REMEDY}") from error
        fits = len(found.actions) == self.problem.n_decisions and set(best) == {*Found.__dataclass_fields__}
        in_range = all(0 <= action < self.problem.n_actions for action in found.actions) and 0 <= found.accuracy <= 1
        if not fits or not in_range:
            raise QuantenvError(f"{path} is damaged: it holds no sound candidate. {REMEDY}")
        return found
