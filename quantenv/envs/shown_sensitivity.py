"""The sensitivities that observations show: measured when the first observation is written that somebody reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np

from quantenv.core.layers import LayerSpec
from quantenv.envs.observations import check_sensitivity
from quantenv.envs.subject import Subject
from quantenv.envs.walk import Walk


class ShownSensitivity:
    """One environment's, its copies' and all of their observers'."""

    def __init__(self, subject: Subject, given: np.ndarray | None, layers: Sequence[LayerSpec], walk: Walk) -> None:
        """Measures nothing yet.

        Args:
            subject: What they are measured of.
            given: What is shown instead, (L,), if it is not None.
            layers: The network's layers, length L.
            walk: The decisions.

        Raises:
            QuantenvError: If there is nothing to measure them of.
        """
        self._subject, self._given, self._layers, self._walk = subject, given, layers, walk
        if given is None:
            subject.check_measurable()
        self.read = True
        """Whether anybody reads the observations that are written now."""

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Within, nobody reads observations."""
        before, self.read = self.read, False
        try:
            yield
        finally:
            self.read = before

    @property
    def evaluations(self) -> float:
        """What measuring them costs, in evaluations: of observations that nobody reads, and of given ones, nothing."""
        return self._subject.sensitivity_evaluations if self.read and self._given is None else 0.0

    @cached_property
    def of_groups(self) -> np.ndarray:
        """Those of the walk's groups, float64 (G,), measured now if they were not yet.

        Raises:
            QuantenvError: If they cannot be measured.
        """
        values = self._subject.sensitivity() if self._given is None else self._given
        return self._walk.per_group(check_sensitivity(values, self._layers))

    @property
    def measured_evaluations(self) -> float:
        """What was measured so far, in evaluations."""
        measured = "of_groups" in self.__dict__ and self._given is None
        return self._subject.sensitivity_evaluations if measured else 0.0
