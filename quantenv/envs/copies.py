"""Copies of an environment, and when an episode that has ended gives way to the next: Gymnasium's autoreset modes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from quantenv.core.arguments import listed, plain, read_options, read_seed, whole_number
from quantenv.core.errors import QuantenvError, shown
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.information import BatchInformation

#: Which copies something is about: all of them, or their indices, int64 (R,).
Rows = slice | np.ndarray
ALL = slice(None)

#: Every key of an info for the R copies that something is about, (R, ...).
Infos = dict[str, Any]


class Copies(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N copies of a `QuantizationEnv` behind Gymnasium's interface of vectorised environments.

    They answer what `gymnasium.vector.SyncVectorEnv` over N such environments answers in the same autoreset mode:

    - ``NEXT_STEP``, Gymnasium's default: the step after the last one of an episode begins the next episode of that
      copy, whatever its action; the reward is 0.
    - ``SAME_STEP``: the last step of an episode also begins the next one. It returns the first observation and info of
      that; what the episode ended with is in ``infos["final_obs"]``, an object array of float32 (F,), and in
      ``infos["final_info"]``. So every step is a decision of every copy.
    - ``DISABLED``: episodes begin by `reset` alone, in some copies by ``options={"reset_mask": terminated}``.

    Every key k of an info is an array over the copies, beside a key _k, bool (N,), that says which copies have it.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, single: QuantizationEnv, num_envs: int, autoreset_mode: AutoresetMode | str) -> None:
        """Prepares copies of an environment.

        Args:
            single: The environment.
            num_envs: Copies, N, at least 1.
            autoreset_mode: When an episode that has ended gives way to the next; Gymnasium's, or its value as text.

        Raises:
            QuantenvError: If there is less than one copy, or no such mode.
        """
        self.num_envs = whole_number(num_envs, "num_envs", 1)
        self.autoreset_mode = read_mode(autoreset_mode)
        """When an episode that has ended gives way to the next."""
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.single = single
        """The environment that was copied: layers, budgets, walk, feature names and so on are read here."""
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(single.observation_space, self.num_envs)
        self.action_space = batch_space(single.action_space, self.num_envs)
        self._information = BatchInformation(single.information.fields, self.num_envs)
        self._begun = np.zeros(self.num_envs, dtype=bool)
        self._waiting = np.zeros(self.num_envs, dtype=bool)  # an episode has ended, and the next one has not begun

    # What each kind of copies does in its own way ----------------------------------------------------------

    @abstractmethod
    def _begin(self, rows: Rows, seeds: Sequence[int | None] | None, options: dict[str, Any] | None) -> Infos:
        """Begins an episode in some copies, by a seed for each of them, and returns their infos."""

    @abstractmethod
    def _act(self, rows: Rows, taken: np.ndarray) -> tuple[np.ndarray, Infos]:
        """Takes a decision, int64 (R,), in some copies; returns rewards, (R,), and infos."""

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """Returns the observations of all copies, float32 (N, F), in memory of their own."""

    @abstractmethod
    def _masks(self) -> np.ndarray:
        """Returns the open options of all copies, bool (N, n), in memory of their own."""

    @abstractmethod
    def _ended(self) -> np.ndarray:
        """Returns in which copies no decision is left, bool (N,), in memory of its own."""

    # Gymnasium's interface ---------------------------------------------------------------------------------

    def action_masks(self) -> np.ndarray:
        """Returns the open options of the decision at hand, bool (N, n).

        Raises:
            ResetNeeded: If no episode was begun.
        """
        self._check_begun()
        return self._masks()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in every copy, or in some.

        Args:
            seed: One for all copies, or one for each of them. A seed also restarts counts and what the constraint has
                learnt.
            options: ``reset_mask``, bool (N,), names the copies in which an episode begins; it goes on in the others.
                The other options are the environment's.

        Returns:
            Observations of all copies, float32 (N, F), and infos of those in which an episode begins.

        Raises:
            QuantenvError: If a seed or the mask is malformed.
            ResetNeeded: If no episode was begun yet in a copy that the mask leaves out.
        """
        seeds = self._seeds(seed)
        own = read_options(options)
        rows = self._rows(self._reset_mask(own.pop("reset_mask"))) if "reset_mask" in own else ALL
        super().reset(seed=None if seeds is None else seeds[0])
        self._begun[rows] = True
        self._waiting[rows] = False
        chosen = seeds if seeds is None or isinstance(rows, slice) else [seeds[row] for row in rows]
        infos = self._begin(rows, chosen, own)
        return self._observe(), self._spread([(rows, infos)])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Executes one decision of every copy; the class says what becomes of episodes that end.

        Args:
            actions: Indices of options, whole numbers (N,).

        Returns:
            Observations float32 (N, F), rewards float64 (N,), terminated and truncated bool (N,), infos.

        Raises:
            QuantenvError: If the actions are not N whole numbers within the action space.
            ResetNeeded: If no episode was begun, or one has ended and, under ``DISABLED``, none followed.
        """
        self._check_begun()
        taken = check_actions(actions, self.num_envs, self.single.walk.n_actions)
        if self._waiting.any():
            rewards, parts = self._act_or_begin(taken)
        else:
            rewards, infos = self._act(ALL, taken)
            parts = [(ALL, infos)]
        terminated = self._ended()
        truncated = np.zeros(self.num_envs, dtype=bool)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            if terminated.any():
                return self._begin_next(rewards, terminated, truncated, parts[0][1])
        else:
            self._waiting = terminated.copy()
        return self._observe(), rewards, terminated, truncated, self._spread(parts)

    def _act_or_begin(self, taken: np.ndarray) -> tuple[np.ndarray, list[tuple[Rows, Infos]]]:
        """Begins an episode in the copies that wait for it, and takes a decision in the others."""
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"The episodes of copies {np.flatnonzero(self._waiting).tolist()} have ended: call "
                "reset(options={'reset_mask': terminated}) first."
            )
        beginning = self._rows(self._waiting)
        rewards = np.array([self.single.no_reward] * self.num_envs)
        if isinstance(beginning, slice):
            return rewards, [(ALL, self._begin(ALL, None, {}))]
        acting = np.flatnonzero(~self._waiting)
        rewards[acting], infos = self._act(acting, taken[acting])
        return rewards, [(acting, infos), (beginning, self._begin(beginning, None, {}))]

    def _begin_next(
        self, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, infos: Infos
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Completes a step that ends episodes and, under ``SAME_STEP``, begins the next ones."""
        rows = self._rows(terminated)
        last = np.full(self.num_envs, None, dtype=object)
        last[rows] = np.fromiter(self._observe()[rows], dtype=object, count=int(terminated.sum()))
        ended = self._spread([(rows, {key: values[rows] for key, values in infos.items()})])
        others = np.flatnonzero(~terminated)
        parts: list[tuple[Rows, Infos]] = [(rows, self._begin(rows, None, {}))]
        if len(others):
            parts.append((others, {key: values[others] for key, values in infos.items()}))
        final = {"final_obs": last, "_final_obs": terminated.copy(), "final_info": ended}
        return (
            self._observe(),
            rewards,
            terminated,
            truncated,
            {**final, "_final_info": terminated.copy(), **self._spread(parts)},
        )

    def _spread(self, parts: list[tuple[Rows, Infos]]) -> dict[str, Any]:
        """Puts infos of different copies together as Gymnasium does: zeros, and a mask, where a copy has none."""
        (rows, infos), *others = parts
        if isinstance(rows, slice):
            masks = np.ones((len(infos), self.num_envs), dtype=bool)
            return infos | {f"_{key}": mask for key, mask in zip(infos, masks, strict=True)}
        result: dict[str, Any] = {}
        for key, values in infos.items():
            result[key] = np.zeros((self.num_envs, *values.shape[1:]), values.dtype)
            result[f"_{key}"] = np.zeros(self.num_envs, dtype=bool)
            for chosen, found in [(rows, infos), *others]:
                result[key][chosen] = found[key]
                result[f"_{key}"][chosen] = True
        return result

    def _rows(self, chosen: np.ndarray) -> Rows:
        """Returns which copies a mask chooses."""
        return ALL if chosen.all() else np.flatnonzero(chosen)

    def _check_begun(self) -> None:
        if not self._begun.all():
            raise ResetNeeded("No episode is running: call reset() first.")

    def _seeds(self, seed: object) -> list[int | None] | None:
        """Reads seeds into one for each copy, or None."""
        if seed is None:
            return None
        given = plain(seed)
        if not isinstance(given, list | tuple):
            return [read_seed(given)] * self.num_envs
        seeds = [read_seed(each) for each in given]
        if len(seeds) != self.num_envs:
            raise QuantenvError(f"seed holds {len(seeds)} seeds for {self.num_envs} copies: give one for each, or one.")
        return None if all(each is None for each in seeds) else seeds

    def _reset_mask(self, mask: object) -> np.ndarray:
        """Reads a mask of the copies in which an episode begins."""
        given = listed(mask, "reset_mask", "truth values, one for each copy")
        if len(given) != self.num_envs or not all(isinstance(each, bool) for each in given) or not any(given):
            raise QuantenvError(
                f"reset_mask is {shown(mask)}: expected {self.num_envs} truth values, one for each copy, and at least "
                "one of them true."
            )
        chosen = np.array(given)
        if not self._begun[~chosen].all():
            raise ResetNeeded("No episode was begun yet in a copy that reset_mask leaves out: call reset() first.")
        return chosen


def read_mode(mode: object) -> AutoresetMode:
    """Returns the autoreset mode of its value as text.

    Raises:
        QuantenvError: If there is no such mode.
    """
    for known in AutoresetMode:
        if mode is known or (isinstance(mode, str) and mode == known.value):
            return known
    values = ", ".join(f"{known.value!r}" for known in AutoresetMode)
    raise QuantenvError(f"autoreset_mode is {shown(mode)}: expected a gymnasium.vector.AutoresetMode, or {values}.")


def check_actions(actions: object, num_envs: int, n_actions: int) -> np.ndarray:
    """Returns the actions of N copies as int64 (N,).

    Raises:
        QuantenvError: If they are not N whole numbers from 0 to ``n_actions - 1``.
    """
    try:
        taken = np.asarray(actions if isinstance(actions, np.ndarray) else plain(actions))
    except ValueError:  # rows of different lengths
        taken = np.zeros(0)
    if taken.shape != (num_envs,) or taken.dtype.kind not in "iu" or ((taken < 0) | (taken >= n_actions)).any():
        raise QuantenvError(
            f"Actions are {shown(actions)}: expected {num_envs} whole numbers from 0 to {n_actions - 1}."
        )
    return taken.astype(np.int64)
