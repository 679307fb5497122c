"""Turns any bits into an allocation that meets the budgets, for optimisers that know no constraints."""

import numpy as np

from agents.search.choices import Choices


class Repair:
    """Lowers random groups, one option at a time, until every budget is met.

    Feasible picks stay as they are. Steps are small and in random order, so that little of the budget is left over and
    no group is favoured, unlike in the environment's own corrections: under a mask the last decisions pay for the
    first ones, and `quantenv.envs.projection` lowers the last ones first.
    """

    def __init__(self, choices: Choices) -> None:
        """Works out what is one option lower.

        Args:
            choices: What can be picked.
        """
        self._choices = choices
        groups, count = choices.open.shape
        self._lower = np.tile(np.arange(count), (2, groups, 1))  # (2, F, P): pair with fewer weight, activation bits
        for column in (0, 1):
            same = choices.pairs[:, None, 1 - column] == choices.pairs[None, :, 1 - column]
            fewer = same & (choices.pairs[None, :, column] < choices.pairs[:, None, column])  # (P, P)
            for group, opened in enumerate(choices.open):
                bits = np.where(fewer & opened, choices.pairs[None, :, column], 0)
                found = bits.max(axis=1) > 0
                self._lower[column, group, found] = bits.argmax(axis=1)[found]

    def __call__(self, picks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Repairs picks.

        Args:
            picks: Open picks, int64 (k, F).
            generator: Draws the groups that are lowered.

        Returns:
            Feasible picks, int64 (k, F); the cheapest one where lowering ends above a budget.
        """
        picks = picks.copy()
        over = np.flatnonzero(~self._choices.feasible(picks))
        while len(over):
            lower = self._lower[:, np.arange(picks.shape[1]), picks[over]]  # (2, k, F)
            steps = np.moveaxis(lower, 0, 1).reshape(len(over), -1)  # (k, 2F)
            possible = steps != np.tile(picks[over], 2)
            ended = ~possible.any(axis=1)
            if ended.any():
                picks[over[ended]] = self._choices.cheapest()
                over, steps, possible = over[~ended], steps[~ended], possible[~ended]
            drawn = np.where(possible, generator.random(steps.shape), -1.0).argmax(axis=1)
            picks[over, drawn % picks.shape[1]] = steps[np.arange(len(over)), drawn]
            over = over[~self._choices.feasible(picks[over])]
        return picks


def random_picks(choices: Choices, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draws picks uniformly among the open ones, int64 (count, F): legal, not necessarily within the budgets."""
    priority = generator.random((count, *choices.open.shape))
    return np.where(choices.open, priority, -1.0).argmax(axis=2)
