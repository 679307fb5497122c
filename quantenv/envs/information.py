"""What an info holds: the same keys, shapes and NumPy types at reset, at each step and at the end of an episode.

Libraries that store infos (Minari, TorchRL and others) read the layout off the first one and expect it in all others.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

#: Stands for what is not known yet. NaN would not do for numbers: Gymnasium's checker compares the infos of equal
#: steps, and NaN is not equal to itself.
UNKNOWN = -1

#: What an info holds already as it should.
NUMPYS = (np.ndarray, np.generic)

#: What one entry of an info is: its NumPy type, and its shape, () for a number.
Field = tuple[type[Any], tuple[int, ...]]


def info_fields(
    n_actions: int,
    n_decisions: int,
    n_layers: int,
    metrics: Iterable[str],
    budgeted: Iterable[str],
    more: Iterable[str],
) -> dict[str, Field]:
    """Returns what the infos of an environment hold.

    Args:
        n_actions: Actions, n.
        n_decisions: Decisions in an episode, T.
        n_layers: Quantizable layers, L.
        metrics: Metrics that have a cost.
        budgeted: Metrics that have a budget.
        more: Names of further numbers.

    Returns:
        Fields by key.
    """
    number, whole = (np.float64, ()), (np.int64, ())
    return {
        "action_mask": (np.int8, (n_actions,)),
        "decision": whole,
        "executed_action": whole,
        "corrected": whole,
        "accuracy": number,
        "loss": number,
        **{f"cost_{metric}": number for metric in metrics},
        **{f"budget_{metric}": number for metric in budgeted},
        "feasible": whole,
        "bits": (np.int64, (n_layers, 2)),
        "evaluations": whole,
        "measured_evaluations": number,
        "executed_actions": (np.int64, (n_decisions,)),
        **dict.fromkeys(more, number),
    }


class Information:
    """Makes the infos of one environment."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        """Prepares an info in which nothing is known.

        Args:
            fields: What infos hold.
        """
        self.fields = dict(fields)
        """What infos hold, by key."""
        self._unknown: dict[str, Any] = {name: kind(UNKNOWN) for name, (kind, _) in self.fields.items()}
        self._arrays = [(name, np.full(shape, UNKNOWN, kind)) for name, (kind, shape) in self.fields.items() if shape]

    def one(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an info of its own memory.

        Args:
            known: What is known, by key; arrays are kept as they are, numbers become NumPy's.
        """
        info = self._unknown.copy()
        for name, array in self._arrays:
            if name not in known:
                info[name] = array.copy()
        for name, value in known.items():
            info[name] = value if isinstance(value, NUMPYS) else self.fields[name][0](value)
        return info


class BatchInformation:
    """Makes the infos of N copies of an environment: every entry has the copies as its first axis."""

    def __init__(self, fields: Mapping[str, Field], num_envs: int) -> None:
        """Prepares infos in which nothing is known.

        Args:
            fields: What the infos of one copy hold.
            num_envs: Copies, N.
        """
        self._num_envs = num_envs
        # One piece of memory holds every entry: copying that is faster than filling many.
        self._places: list[tuple[str, slice, type[Any], tuple[int, ...]]] = []
        pieces, start = [], 0
        for name, (kind, shape) in fields.items():
            piece = np.full((num_envs, *shape), UNKNOWN, kind).view(np.uint8).ravel()
            pieces.append(np.pad(piece, (0, -len(piece) % 8)))  # so that every piece is aligned
            self._places.append((name, slice(start, start + len(piece)), kind, (num_envs, *shape)))
            start += len(pieces[-1])
        self._unknown = np.concatenate(pieces)

    def many(self, count: int, known: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns infos of their own memory.

        Args:
            count: How many of the copies they are about, R.
            known: What is known, by key: arrays (R, ...), which are kept, or numbers that hold for all of them.
        """
        unknown, info = self._unknown.copy(), {}
        for name, place, kind, shape in self._places:
            value = known.get(name)
            if isinstance(value, np.ndarray):
                info[name] = value
                continue
            info[name] = unknown[place].view(kind).reshape(shape)[:count]
            if value is not None:
                info[name][:] = value
        return info
