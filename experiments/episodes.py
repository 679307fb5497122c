"""Episodes on file: `episodes.jsonl`, one line for each evaluation, appended and never rewritten."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec


@dataclass(frozen=True)
class Episode:
    """One finished episode: what was evaluated and what came of it, on the search split."""

    evaluation: int
    """Number of the evaluation, from 1."""
    bits: tuple[tuple[int, int], ...]
    """(weight bits, activation bits) of each layer."""
    correct: int
    """Samples classified correctly."""
    samples: int
    """Samples evaluated."""
    loss: float
    """Mean cross-entropy in nats."""
    reward: float
    """Reward of the episode."""
    costs: dict[str, float]
    """Cost in every metric of the device, in SI units."""
    feasible: bool
    """Whether every budget is met."""
    penalty_lambda: float | None = None
    """Price of a violation in this episode; None unless the constraint is ``lagrangian``."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0-1."""
        return self.correct / self.samples

    def allocation(self, layers: Sequence[LayerSpec], task: str = "", scheme: str = "") -> Allocation:
        """Returns the bits as an allocation of these layers."""
        weights, activations = zip(*self.bits, strict=True)
        return Allocation.make(layers, weights, activations, task, scheme)

    def to_line(self) -> str:
        """Returns the episode as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Episode":
        """Reads the object that `to_line` writes.

        Raises:
            KeyError, TypeError, ValueError: If a key is missing or of the wrong type.
        """
        values = dict(content)
        values["bits"] = tuple((int(weight), int(activation)) for weight, activation in values["bits"])
        episode = cls(**values)
        if not (0 <= episode.correct <= episode.samples and episode.samples > 0 and episode.costs):
            raise ValueError("counts or costs are out of range")
        return episode


def read_episodes(path: Path) -> tuple[list[Episode], int]:
    """Reads an episode file; a last line without its line end, torn by a crash, is left out.

    Args:
        path: The file; it need not exist yet.

    Returns:
        The episodes, and the length in bytes of the file's sound part.

    Raises:
        QuantenvError: If another line is damaged, or the evaluations are not numbered 1, 2, 3, ...
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise QuantenvError(f"Cannot read {path}: {error.strerror}.") from error
    sound = content.rfind(b"\n") + 1
    episodes: list[Episode] = []
    for number, line in enumerate(content[:sound].splitlines(), start=1):
        try:
            episode = Episode.from_dict(json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise QuantenvError(
                f"{path}, line {number}, is not a recorded episode: the file is damaged. Restore it, "
                "or delete that line and all after it and resume from there."
            ) from error
        if episode.evaluation != number:
            raise QuantenvError(
                f"{path}, line {number}, holds evaluation {episode.evaluation}: lines are missing or repeated. "
                "Restore the file, or delete that line and all after it and resume from there."
            )
        episodes.append(episode)
    return episodes, sound


class EpisodeLog:
    """Appends episodes to the file; those recorded earlier are compared instead, which is what resuming rests on."""

    def __init__(self, path: Path, recorded: Sequence[Episode] = (), sound: int = 0) -> None:
        """Opens the file for appending and cuts a torn last line off.

        Args:
            path: The file.
            recorded: Episodes that the file already holds.
            sound: Length in bytes of these episodes' lines.
        """
        self._path, self._recorded = path, recorded
        self._file = path.open("ab")
        self._file.truncate(sound)

    def __call__(self, episode: Episode) -> None:
        """Appends an episode and hands it to the operating system, so that a killed process loses none.

        Raises:
            QuantenvError: If the episode was recorded and differs from its record.
        """
        if episode.evaluation > len(self._recorded):
            self._file.write(episode.to_line().encode())
            self._file.flush()
        elif episode.to_line() != self._recorded[episode.evaluation - 1].to_line():
            raise QuantenvError(
                f"The run cannot be resumed: evaluation {episode.evaluation} replays to other "
                f"{_difference(episode, self._recorded[episode.evaluation - 1])} than {self._path} records, so the "
                "agent, its options or a library changed since. Start a new run, or restore what was installed."
            )

    def close(self) -> None:
        """Makes the file durable and closes it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _difference(replayed: Episode, recorded: Episode) -> str:
    one, other = asdict(replayed), asdict(recorded)
    return ", ".join(name for name in one if one[name] != other[name])
