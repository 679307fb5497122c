"""Episodes on file: `episodes.jsonl`, one line for each evaluation, appended and never rewritten.

Each line's checksum depends on that of the line before it, so that no line is changed, lost, repeated or moved unseen.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantenv.core.allocation import Allocation, Bits
from quantenv.core.errors import QuantenvError
from quantenv.core.files import naming
from quantenv.core.layers import LayerSpec
from quantenv.core.reading import LINE_LIMIT, Schema, check_readable, fit
from quantenv.core.records import KEY, open_line, sealed

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]


class Episode(Schema, frozen=True):
    """One finished episode: what was evaluated and what came of it, on the search split."""

    evaluation: Positive
    """Number of the evaluation, from 1."""
    bits: Annotated[tuple[tuple[Bits, Bits], ...], msgspec.Meta(min_length=1)]
    """(weight bits, activation bits) of each layer."""
    correct: Count
    """Samples classified correctly."""
    samples: Positive
    """Samples evaluated."""
    loss: NonNegative
    """Mean cross-entropy in nats; nan, null in the file, where the network's outputs are no numbers."""
    reward: float
    """Reward of the episode; minus infinity, null in the file, where the constraint ``reject`` says so."""
    costs: Annotated[dict[str, NonNegative], msgspec.Meta(min_length=1)]
    """Cost in every metric of the device, in SI units."""
    feasible: bool
    """Whether every budget is met."""
    penalty_lambda: NonNegative | None = None
    """Price of a violation in this episode; None unless the constraint is ``lagrangian``."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0-1."""
        return self.correct / self.samples

    def allocation(self, layers: Sequence[LayerSpec], task: str = "", scheme: str = "") -> Allocation:
        """Returns the bits as an allocation of these layers."""
        weights, activations = zip(*self.bits, strict=True)
        return Allocation.make(layers, weights, activations, task, scheme)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the episode's line, but for the checksum."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        content["loss"] = self.loss if math.isfinite(self.loss) else None
        content["reward"] = None if self.reward == -math.inf else self.reward
        return content


def read_episodes(path: Path) -> tuple[list[Episode], int]:
    """Reads an episode file; a last line without its line end, torn by a crash, is left out.

    Args:
        path: The file; it need not exist yet.

    Returns:
        The episodes, and the length in bytes of the file's sound part.

    Raises:
        QuantenvError: If another line is damaged, or lines are missing, repeated or moved.
    """
    episodes: list[Episode] = []
    sound, before = 0, ""
    if not path.exists():
        return episodes, sound
    check_readable(path, what="episode file")
    try:
        with path.open("rb") as file:
            while (line := file.readline(LINE_LIMIT + 1)).endswith(b"\n") or len(line) > LINE_LIMIT:
                number = len(episodes) + 1
                try:
                    episode, before = _read_line(line, f"{path}, line {number},", before)
                    _check_follows(episode, episodes, f"{path}, line {number},")
                except QuantenvError as error:
                    raise QuantenvError(
                        f"{str(error).rstrip('.')}: the file is damaged. Restore it, or delete that line and all after "
                        "it and resume from there."
                    ) from error
                episodes.append(episode)
                sound += len(line)
    except OSError as error:
        raise QuantenvError(f"Cannot read {path}: {error.strerror}.") from error
    return episodes, sound


def _read_line(line: bytes, where: str, before: str) -> tuple[Episode, str]:
    """Reads a line; returns the episode and the line's checksum."""
    if len(line) > LINE_LIMIT:
        raise QuantenvError(f"{where} is longer than {LINE_LIMIT:,} bytes.")
    content, checksum = open_line(line, where, before)
    no_loss = content.get("loss", 0) is None
    if no_loss:
        content["loss"] = 0  # nan has no place in a range of numbers
    if content.get("reward", 0) is None:
        content["reward"] = -math.inf
    episode = fit(content, Episode, where)
    if no_loss:
        episode = msgspec.structs.replace(episode, loss=math.nan)
    if episode.correct > episode.samples:
        raise QuantenvError(f"{where} has {episode.correct} correct of {episode.samples} samples.")
    return episode, checksum


def _check_follows(episode: Episode, earlier: Sequence[Episode], where: str) -> None:
    """Raises QuantenvError unless an episode is the next one of the same search."""
    if episode.evaluation != len(earlier) + 1:
        raise QuantenvError(f"{where} holds evaluation {episode.evaluation}.")
    first = earlier[0] if earlier else episode
    if len(episode.bits) != len(first.bits) or episode.samples != first.samples or [*episode.costs] != [*first.costs]:
        raise QuantenvError(f"{where} has other layers, samples or costs than the first line.")


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
        self._file = path.open("a+b")
        self._file.truncate(sound)
        self._last = self._last_checksum() if recorded else ""

    def __call__(self, episode: Episode) -> None:
        """Appends an episode and hands it to the operating system, so that a killed process loses none.

        Raises:
            QuantenvError: If the episode was recorded and differs from its record, or one of its numbers is not finite.
        """
        if episode.evaluation > len(self._recorded):
            line = sealed(episode.to_dict(), self._last)
            with naming(self._path):
                self._file.write(json.dumps(line).encode() + b"\n")
                self._file.flush()
            self._last = line[KEY]
        elif _text(episode) != _text(self._recorded[episode.evaluation - 1]):
            raise QuantenvError(
                f"The run cannot be resumed: evaluation {episode.evaluation} replays to other "
                f"{_difference(episode, self._recorded[episode.evaluation - 1])} than {self._path} records, so the "
                "agent, its options or a library changed since. Start a new run, or restore what was installed."
            )

    def close(self) -> None:
        """Makes the file durable and closes it."""
        with naming(self._path), self._file as file:
            file.flush()
            os.fsync(file.fileno())

    def _last_checksum(self) -> str:
        """Returns the checksum of the last line."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - LINE_LIMIT - 1))
        last: str = json.loads(self._file.read().splitlines()[-1])[KEY]
        return last


def _text(episode: Episode) -> str:
    return json.dumps(episode.to_dict())


def _difference(replayed: Episode, recorded: Episode) -> str:
    one, other = replayed.to_dict(), recorded.to_dict()
    return ", ".join(name for name in one if one[name] != other[name])
