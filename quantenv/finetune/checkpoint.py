"""A file from which an interrupted fine-tuning goes on as if nothing had happened."""

import dataclasses
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.files import content_hash, write_atomically
from quantenv.finetune.config import FinetuneConfig
from quantenv.quantize import parse_scheme
from quantenv.tasks import Task

logger = logging.getLogger(__name__)


class Checkpoint:
    """The state of one fine-tuning in a file, or of none where there is no path."""

    def __init__(self, path: Path | None, task: Task, allocation: Allocation, config: FinetuneConfig) -> None:
        """Makes the checkpoint of a fine-tuning; reads and writes nothing yet.

        Args:
            path: The file; None keeps nothing.
            task: What is fine-tuned,
            allocation: with which bits,
            config: and how: a file of anything else is not taken over. Any number of processes can go on.
        """
        self.path = path
        if path is not None:
            scheme = parse_scheme(task.scheme).version
            recipe = dataclasses.replace(config, processes=1).identity
            self.identity = content_hash(
                ["checkpoint-1", scheme, task.identity, recipe, str((allocation.names, allocation.bits))]
            )

    def load(self) -> dict[str, Any] | None:
        """Returns the state, or None if there is none of this fine-tuning.

        Raises:
            QuantenvError: If the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, state = content["identity"], content["state"]
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise QuantenvError(
                f"{self.path} is no sound checkpoint of a fine-tuning: delete it to start over."
            ) from error
        if identity != self.identity:
            logger.info("%s is of another fine-tuning; starting over.", self.path)
            return None
        return dict(state)

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state, atomically."""
        if self.path is not None:
            content = {"identity": self.identity, "state": state}
            write_atomically(self.path, lambda file: torch.save(content, file))
