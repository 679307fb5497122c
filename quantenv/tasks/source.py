"""What a task is made from besides its name: the data, network and weights that a user brings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from quantenv.core.errors import QuantenvError
from quantenv.core.typed import check_fields, require_within

#: The weights that torchvision publishes for a network, its best.
DEFAULT = "DEFAULT"


@dataclass(frozen=True)
class TaskSource:
    """Data, network and weights of a task that does not bring its own; None stands for what the task says.

    Raises:
        QuantenvError: If a number is out of range.
    """

    data: str | None = None
    """Folder of the data."""
    model: str | None = None
    """Name of the network."""
    weights: str | None = None
    """File of a state dict, or ``DEFAULT``: those that torchvision publishes."""
    image_size: int | None = None
    """Height and width that images of a folder are brought to, pixels."""
    max_images: int | None = None
    """Images of a folder to keep in memory for each of fine-tuning, searching and testing."""
    channel_groups: int | Mapping[str, int] | None = None
    """Groups of output channels with bits of their own, of every layer or by layer name."""
    least_channels: int | None = None
    """Channels that each of them has at least."""
    prepared: str | None = None
    """File of the task's prepared network, such as one made on another machine."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, math.inf, "image_size", "max_images", "least_channels")
        groups = self.channel_groups
        by_name = groups.items() if isinstance(groups, Mapping) else [("", groups)]
        for name, count in by_name:
            if count is not None and count < 1:
                option = f"channel_groups.{name}" if name else "channel_groups"
                raise QuantenvError(f"--{option} is {count}; expected a whole number of at least 1.")
        if self.least_channels is not None and groups is None:
            raise QuantenvError("--least_channels is about channel groups: give --channel_groups, or leave it out.")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what is not None."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def whole(self) -> "TaskSource":
        """The same with whole layers."""
        return replace(self, channel_groups=None, least_channels=None)

    @property
    def bare(self) -> "TaskSource":
        """What the task is made of, without what is done with it: with whole layers, and nothing prepared."""
        return replace(self.whole, prepared=None)


def absolute(path: str | None) -> str | None:
    """Returns a path that means the same from every folder; ``DEFAULT`` and None stay as they are."""
    return path if path in (None, DEFAULT) else str(Path(path).expanduser().absolute())
