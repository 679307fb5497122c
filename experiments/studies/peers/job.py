"""What one process of the race does, and what it says of it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from quantenv.core.errors import QuantenvError, unknown_name

#: What a process can be asked to do, by program.
ACTIONS = {
    "mct": ("mixed", "uniform", "gptq"),
    "quantenv": ("mixed", "uniform", "evaluate", "episodes"),
    "haq": ("episodes",),
}
#: Weight bits that mixed precision chooses from; activations have 8 everywhere.
BITS = (2, 4, 8)


@dataclass(frozen=True)
class Job:
    """One program's work on one network, in a process of its own.

    Raises:
        QuantenvError: If the program is unknown or does not do this.
    """

    program: str
    """mct, quantenv or haq."""
    action: str
    """``mixed``: find weight bits among `BITS` within a ratio of the 8-bit size; ``uniform``: the same bits everywhere;
    ``gptq``: the same with MCT's trained rounding; ``evaluate``: given bits; ``episodes``: of a search."""
    network: str
    """A name of `experiments.studies.peers.networks`."""
    ratio: float | None = None
    """For ``mixed``: the budget."""
    bits: int | None = None
    """For ``uniform`` and ``gptq``."""
    weight_bits: tuple[int, ...] | None = None
    """For ``evaluate``: of each layer."""
    scheme: str | None = None
    """quantenv's quantization scheme; None is its default."""
    hessian: bool = False
    """For ``gptq``: whether errors are weighted by estimates of the Hessian, as they are by default; these alone take
    several minutes."""
    epochs: int = 0
    """For ``gptq``: passes over the calibration images. For ``episodes``: of fine-tuning in each, 0 or 1."""
    images: int | None = None
    """Images of the search split, None as the task has them; of networks at 224 pixels, images of every split."""
    episodes: int = 0
    """For ``episodes``: how many."""
    weights: str | None = None
    """File of the network's weights, if they are not the task's."""

    def __post_init__(self) -> None:
        if self.program not in ACTIONS:
            raise unknown_name("program", self.program, ACTIONS)
        if self.action not in ACTIONS[self.program]:
            raise QuantenvError(f"{self.program} has no {self.action!r}; it does {', '.join(ACTIONS[self.program])}.")

    @property
    def key(self) -> str:
        """Names the job in the results: what it asks for, without where weights lie."""
        asked = {name: value for name, value in asdict(self).items() if value and name != "weights"}
        if "weight_bits" in asked:
            asked["weight_bits"] = hashlib.sha256(json.dumps(asked["weight_bits"]).encode()).hexdigest()[:8]
        return " ".join(str(value) if name in _PLAIN else f"{name}={value}" for name, value in asked.items())

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Job":
        """Makes a job of what `dataclasses.asdict` made of one, after a way through JSON."""
        bits = values["weight_bits"]
        return cls(**{**values, "weight_bits": None if bits is None else tuple(bits)})


#: Fields whose values speak for themselves.
_PLAIN = ("program", "action", "network")
