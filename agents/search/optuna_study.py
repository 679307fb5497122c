"""A quantization environment as an Optuna study. Imports optuna, which is in the extra `search`."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from agents.search.choices import Choices
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv

#: Values of all parameters by name.
Values = dict[str, int]


class Parameters:
    """The parameters of a study: for each group's weights and activations, how many options above the fewest bits.

    Attributes:
        distributions: Optuna's distributions by name, ``<the group's first layer>/weights`` or ``/activations``. What
            has one option only has no parameter.
    """

    def __init__(self, env: gymnasium.Env, choices: Choices) -> None:
        """Names and bounds them.

        Args:
            env: A QuantizationEnv, wrapped or not.
            choices: Its pairs of bits.
        """
        inner: QuantizationEnv = env.unwrapped  # type: ignore[assignment]
        self._choices = choices
        self._options: dict[str, tuple[int, int, np.ndarray]] = {}  # group, column of pairs, bits
        for group, (index, opened) in enumerate(zip(np.unique(inner.walk.groups), choices.open, strict=True)):
            layer = inner.layers[inner.walk.members[index][0]].name
            for column, kind in enumerate(("weights", "activations")):
                bits = np.unique(choices.pairs[opened, column])
                if len(bits) > 1:
                    self._options[f"{layer}/{kind}"] = group, column, bits
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(bits) - 1) for name, (_, _, bits) in self._options.items()
        }

    @property
    def bits(self) -> dict[str, list[int]]:
        """The bits that a parameter's values stand for, by name."""
        return {name: bits.tolist() for name, (_, _, bits) in self._options.items()}

    def pick(self, values: Mapping[str, int]) -> np.ndarray:
        """Returns the pick nearest in bits, int64 (F,): open, not necessarily within the budgets."""
        pairs, opened = self._choices.pairs, self._choices.open
        wanted = pairs[opened.argmax(axis=1)].copy()  # where there is no parameter there is no choice
        for name, value in values.items():
            group, column, bits = self._options[name]
            wanted[group, column] = bits[value]
        distance = np.abs(wanted[:, None] - pairs).sum(axis=2)  # (F, P)
        return np.where(opened, distance, np.iinfo(np.int64).max).argmin(axis=1)  # ties: fewer bits come first

    def values(self, pick: np.ndarray) -> dict[str, int]:
        """Returns the parameters of a pick (F,)."""
        return {
            name: int(np.searchsorted(bits, self._choices.pairs[pick[group], column]))
            for name, (group, column, bits) in self._options.items()
        }


class ChoosySampler(BaseSampler):
    """Another sampler, whose proposals are looked at before they become trials."""

    def __init__(
        self,
        inner: BaseSampler,
        distributions: dict[str, BaseDistribution],
        choose: Callable[[Values], Values],
    ) -> None:
        """Wraps a sampler.

        Args:
            inner: The sampler.
            distributions: All parameters.
            choose: Given what the sampler proposes, returns what is tried.
        """
        self._inner, self._distributions, self._choose = inner, distributions, choose

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns all parameters: they are looked at together, so they are sampled together."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples all parameters, as the other sampler would, and has them looked at."""
        sampled = self._inner.sample_relative(study, trial, search_space) if search_space else {}
        proposed = {
            name: sampled[name] if name in sampled else self._inner.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }
        return dict(self._choose({name: int(value) for name, value in proposed.items()}))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Leaves parameters of other studies to the other sampler."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tells the other sampler."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tells the other sampler."""
        self._inner.after_trial(study, trial, state, values)


def executed_trial(parameters: Parameters, pick: np.ndarray, *objectives: float) -> FrozenTrial:
    """Makes a finished trial of a pick (F,) that no sampler proposed."""
    return optuna.trial.create_trial(
        values=objectives, params=parameters.values(pick), distributions=parameters.distributions
    )


def create_study(storage: str, name: str, sampler: BaseSampler, objectives: int = 1) -> optuna.Study:
    """Creates a study of its own for one search.

    Args:
        storage: A URL of Optuna's, or empty for memory.
        name: Name of the study; where the storage has it, a number is added: studies are never continued.
        sampler: Proposes its trials.
        objectives: Values of a trial.

    Returns:
        The study, which minimises.

    Raises:
        QuantenvError: If the storage cannot be opened.
    """
    with quiet():
        try:
            backend = optuna.storages.get_storage(storage or None)
            taken = set(optuna.get_all_study_names(backend))
        except Exception as error:  # of whichever driver the URL names
            raise QuantenvError(
                f"Optuna cannot open the storage {storage.split('@')[-1]!r} ({type(error).__name__}): expected a URL "
                "such as sqlite:///trials.db, in a folder that exists."
            ) from error
        number = 1
        while True:
            study_name = name if number == 1 else f"{name}-{number}"
            number += 1
            if study_name in taken:
                continue
            try:
                directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
                return optuna.create_study(
                    storage=backend, study_name=study_name, sampler=sampler, directions=directions
                )
            except optuna.exceptions.DuplicatedStudyError:  # another search was quicker
                taken.add(study_name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna from announcing studies, trials and experimental options."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
