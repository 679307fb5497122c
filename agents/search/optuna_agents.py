"""Optuna's optimisers as agents: NSGA-II, TPE and CMA-ES (Akiba et al., KDD 2019).

Each group of tied layers has a parameter for its weight bits and one for its activation bits, as far as they are
decided: a whole number that counts the options from the fewest bits on. Optuna minimises error plus a tenth of the
loss (`agents.search.ask_tell.Results.objective`).

Optuna's samplers know nothing of budgets here. What a sampler proposes is *repaired* before it becomes a trial: to the
nearest pair of bits that the device has, and by `agents.search.repair` to the budgets. The same allocation has the
same value, so one that is known is not evaluated again: random swaps of bits lead from it to one that is not. A trial's
parameters are therefore what was executed, and its value belongs to them; CMA-ES, which draws real numbers, is told
them as whole ones. Where an environment executes something else all the same, as it may when several budgets disagree,
the trial is told as failed and what was executed is added as a trial of its own.

A run is resumed by replaying it, never from Optuna's storage. A storage is for looking at, say with Optuna's dashboard:
each search writes a study of its own there, and one that is there already is neither read nor continued. Writing takes
some ten milliseconds and more for a trial.
"""

import importlib
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np

from agents.base import Log, counts_evaluations, require_in_range
from agents.search.ask_tell import AskTellAgent, Results
from agents.search.choices import Choices
from agents.search.repair import Repair, random_picks
from quantenv.core.errors import QuantenvError

if TYPE_CHECKING:
    import optuna

#: Swaps in a row to known allocations after which random allocations are drawn instead.
LONGEST_WALK = 50

#: Random allocations tried before all are taken to be known.
DRAWS = 1000


@dataclass(frozen=True)
class TPEConfig:
    """Options of the tree-structured Parzen estimator."""

    startup: int = 10
    """Random trials before the first model."""
    candidates: int = 24
    """Draws of which the one of highest expected improvement becomes a trial."""
    batch: int = 1
    """Trials asked for at once. More of them can be evaluated side by side, but know less of each other."""
    storage: str = ""
    """Where Optuna keeps the trials: a URL such as ``sqlite:///trials.db``. Empty keeps them in memory."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "startup", "candidates", "batch")


@dataclass(frozen=True)
class NSGA2Config:
    """Options of NSGA-II."""

    population: int = 20
    """Individuals of a generation."""
    crossover: float = 0.9
    """Probability that a child has two parents."""
    mutation: float = 0.0
    """Probability that a parameter of a child is drawn anew; 0 means one over the number of parameters."""
    batch: int = 10
    """Trials asked for at once."""
    storage: str = ""
    """Where Optuna keeps the trials: a URL such as ``sqlite:///trials.db``. Empty keeps them in memory."""

    def __post_init__(self) -> None:
        require_in_range(self, 2, math.inf, "population")
        require_in_range(self, 0, 1, "crossover", "mutation")
        require_in_range(self, 1, math.inf, "batch")


@dataclass(frozen=True)
class CMAESConfig:
    """Options of CMA-ES."""

    population: int = 0
    """Samples of a generation, asked for at once, at least 4; 0 means 4 + floor(3 ln n) for n parameters (Hansen,
    "The CMA evolution strategy: a tutorial", 2016, equation 48)."""
    storage: str = ""
    """Where Optuna keeps the trials: a URL such as ``sqlite:///trials.db``. Empty keeps them in memory."""

    def __post_init__(self) -> None:
        require_in_range(self, 0, math.inf, "population")
        if self.population != 0:
            require_in_range(self, 4, math.inf, "population")


class _OptunaAgent(AskTellAgent):
    """Proposes what a sampler of Optuna does, repaired."""

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`.

        Raises:
            QuantenvError: If Optuna is not installed.
        """
        super().__init__(env, seed, config)
        self._optuna = _import_extra(self.name, "agents.search.optuna_study")
        self._choices = Choices(self.problem)
        self._repair = Repair(self._choices)
        self._parameters = self._optuna.Parameters(env, self._choices)
        self._known: set[bytes] = set()  # picks
        self._asked: list[tuple[optuna.Trial, np.ndarray]] = []
        self._best = math.inf

    @abstractmethod
    def _sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        """Makes the sampler."""

    @property
    def _batch(self) -> int:
        """Trials asked for at once."""
        return self.config.batch

    @cached_property
    def _study(self) -> "optuna.Study":
        optuna_study = self._optuna
        sampler = self._sampler(int(self.generator.integers(2**31)))
        choosy = optuna_study.ChoosySampler(sampler, self._parameters.distributions, self._choose)
        study = optuna_study.create_study(self.config.storage, f"quantenv-{self.name}-seed{self._seed}", choosy)
        study.set_user_attr("bits", self._parameters.bits)
        return study

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Searches as `agents.search.ask_tell.AskTellAgent` does, with Optuna kept quiet."""
        with self._optuna.quiet():
            super().learn(evaluations, log)

    def ask(self, count: int) -> np.ndarray:
        """Proposes the sampler's next trials; none if all allocations seem to be known."""
        self._asked = []
        for _ in range(min(count, self._batch)):
            trial = self._study.ask(self._parameters.distributions)
            pick = self._parameters.pick(trial.params)
            if pick.tobytes() in self._known:
                self._study.tell(trial, state=self._optuna.TrialState.FAIL)
                break
            self._known.add(pick.tobytes())
            self._asked.append((trial, pick))
        picks = np.array([pick for _, pick in self._asked], dtype=np.int64)
        return self._choices.actions(picks.reshape(-1, len(self._choices.open)))

    def tell(self, results: Results) -> None:
        """Tells the study what was executed."""
        picks = self._choices.picks(results.actions)
        for (trial, asked), pick, objective in zip(self._asked, picks, results.objective.tolist(), strict=True):
            if np.array_equal(asked, pick):
                self._study.tell(trial, objective)
            else:
                self._study.tell(trial, state=self._optuna.TrialState.FAIL)
                self._study.add_trial(self._optuna.executed_trial(self._parameters, pick, objective))
            self._known.add(pick.tobytes())
            self._best = min(self._best, objective)

    def metrics(self) -> dict[str, float]:
        """Returns the least objective told so far."""
        return {"train/objective": self._best}

    def _choose(self, values: dict[str, int]) -> dict[str, int]:
        """Returns the unknown allocation that is tried where the sampler proposes some values."""
        pick = self._repair(self._parameters.pick(values)[None], self.generator)[0]
        for _ in range(LONGEST_WALK):
            if pick.tobytes() not in self._known:
                return self._parameters.values(pick)
            pick = self._choices.swaps(pick[None], self.generator)[0]
        picks = self._repair(random_picks(self._choices, DRAWS, self.generator), self.generator)
        unknown = (each for each in picks if each.tobytes() not in self._known)
        return self._parameters.values(next(unknown, pick))


class TPEAgent(_OptunaAgent):
    """Tree-structured Parzen estimator (Bergstra et al., NIPS 2011): Optuna's, computed by tables."""

    name: ClassVar[str] = "tpe"
    config_class: ClassVar[type] = TPEConfig

    def _sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        from agents.search.tpe_sampler import TableTPESampler

        return TableTPESampler(self.config.startup, self.config.candidates, seed)


class NSGA2Agent(_OptunaAgent):
    """Evolutionary search: NSGA-II (Deb et al., IEEE TEC 6, 2002), by Optuna."""

    name: ClassVar[str] = "nsga2"
    config_class: ClassVar[type] = NSGA2Config

    def _sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self.config.population,
            crossover_prob=self.config.crossover,
            mutation_prob=self.config.mutation or None,
            seed=seed,
        )


class CMAESAgent(_OptunaAgent):
    """Evolution strategy: CMA-ES (Hansen and Ostermeier, Evol. Comp. 9, 2001), as by Optuna."""

    name: ClassVar[str] = "cma-es"
    config_class: ClassVar[type] = CMAESConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`.

        Raises:
            QuantenvError: If Optuna or cmaes is not installed.
        """
        super().__init__(env, seed, config)
        _import_extra(self.name, "cmaes")

    @property
    def _batch(self) -> int:
        return self.config.population or 4 + math.floor(3 * math.log(max(1, len(self._parameters.distributions))))

    def _sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        from agents.search.cma_sampler import MemoryCMASampler

        return MemoryCMASampler(self._batch, seed)


def _import_extra(agent: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise QuantenvError(
            f"Agent {agent!r} needs {error.name}, which is not installed: pip install 'quantenv[search]'."
        ) from error
