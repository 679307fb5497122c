"""A file from which an interrupted fine-tuning goes on as if nothing had happened."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.schemes import parse_scheme
from quantenv.tasks import Task
from quantenv.training.config import FinetuneConfig
from quantenv.training.session import Session

FORMAT = "quantenv-finetuning-1"
REMEDY = "Delete it to start over."
logger = logging.getLogger(__name__)

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Numbers(msgspec.Struct, forbid_unknown_fields=True):
    """What a checkpoint holds besides tensors."""

    identity: str
    epoch: Count
    step: Count
    total: float
    """Sum of the epoch's losses so far."""
    rates: list[float]
    """Learning rates of the parameter groups."""
    schedule: dict[str, Any]
    history: list[dict[str, float]]
    best: Evaluation
    best_epoch: Count


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
        self.samples = len(task.splits["train"])
        if path is not None:
            scheme = parse_scheme(task.scheme).version
            recipe, start = dataclasses.replace(config, processes=1).identity, calibrate_task(task).content_hash
            self.identity = content_hash(
                ["checkpoint-2", scheme, task.identity, start, recipe, str((allocation.names, allocation.bits))]
            )

    def load(self, session: Session) -> bool:
        """Takes a session, which has just begun, to where the checkpoint is.

        Returns:
            Whether there is a checkpoint of this fine-tuning; else nothing changes.

        Raises:
            QuantenvError: If the file is damaged; nothing changes.
        """
        if self.path is None or not self.path.exists():
            return False
        numbers, tensors = read_tensors(self.path, FORMAT, "a checkpoint of a fine-tuning", REMEDY)
        if numbers.get("identity") != self.identity:
            logger.info("%s is of another fine-tuning; starting over.", self.path)
            return False
        try:
            state = _state(msgspec.convert(numbers, _Numbers), _by_part(tensors), session, self.samples)
        except (msgspec.ValidationError, ValueError) as error:
            raise QuantenvError(f"{self.path} is no sound checkpoint of this fine-tuning: {error}. {REMEDY}") from error
        session.restore(state)
        return True

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes a session's state, atomically."""
        if self.path is None:
            return
        best, best_epoch, best_state = state["best"]
        epoch, step, total = state["position"]
        optimizer = state["optimizer"]
        numbers = {
            "identity": self.identity,
            **{"epoch": epoch, "step": step, "total": total},
            "rates": [group["lr"] for group in optimizer["param_groups"]],
            "schedule": state["schedule"],
            "history": state["history"],
            "best": best,
            "best_epoch": best_epoch,
        }
        parts = {
            "network": state["network"],
            "average": state["average"] or {},
            "best": best_state,
            "momentum": {str(index): kept["momentum_buffer"] for index, kept in optimizer["state"].items()},
            "draws": {"generator": state["generator"], "order": state["order"]},
        }
        tensors = {f"{part}/{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
        write_tensors(self.path, FORMAT, numbers, tensors)


def _by_part(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {
        part: {} for part in ("network", "average", "best", "momentum", "draws")
    }
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise ValueError(f"it holds the unknown {name[:80]!r}")
        parts[part][rest] = tensor
    return parts


def _state(
    numbers: _Numbers, parts: dict[str, dict[str, torch.Tensor]], session: Session, samples: int
) -> dict[str, Any]:
    """Returns what `Session.restore` takes.

    Raises:
        ValueError: If anything does not fit the session.
    """
    now = session.progress()
    optimizer = now["optimizer"]
    _check_alike("network", parts["network"], now["network"])
    _check_alike("average", parts["average"], now["average"] or {})
    _check_alike("best", parts["best"], session.evaluated.state_dict())
    order = parts["draws"].get("order", torch.empty(0))
    _check_alike("draws", parts["draws"], {"generator": now["generator"], "order": order})
    _check_generator(parts["draws"]["generator"])
    parameters = [parameter for group in session.optimizer.param_groups for parameter in group["params"]]
    buffers = {str(index): parameter for index, parameter in enumerate(parameters) if str(index) in parts["momentum"]}
    _check_alike("momentum", parts["momentum"], buffers)
    if order.dtype != torch.int64 or order.dim() != 1 or len(order) not in (0, session.batches * session.batch_size):
        raise ValueError(f"its order of samples is {order.dtype} {tuple(order.shape)}")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < samples:
        raise ValueError("its order names samples that the training split has not")
    if numbers.step > (session.batches if len(order) else 0):
        raise ValueError(f"it is at step {numbers.step} of an epoch of {session.batches}")
    if len(numbers.rates) != len(optimizer["param_groups"]):
        raise ValueError(f"it has {len(numbers.rates)} learning rates")
    if not _like(numbers.schedule, now["schedule"]):
        raise ValueError("its schedule of the learning rate is another one")
    if len(numbers.history) != numbers.epoch or not numbers.best_epoch < max(1, numbers.epoch):
        raise ValueError(f"it is at epoch {numbers.epoch} and tells of {len(numbers.history)}")
    groups = [{**group, "lr": rate} for group, rate in zip(optimizer["param_groups"], numbers.rates, strict=True)]
    momenta = {int(index): {"momentum_buffer": buffer} for index, buffer in parts["momentum"].items()}
    return {
        "network": parts["network"],
        "average": parts["average"] or None,
        "optimizer": {"state": momenta, "param_groups": groups},
        "schedule": numbers.schedule,
        "generator": parts["draws"]["generator"],
        "order": order,
        "position": (numbers.epoch, numbers.step, numbers.total),
        "history": numbers.history,
        "best": (dataclasses.asdict(numbers.best), numbers.best_epoch, parts["best"]),
    }


def _check_alike(what: str, there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]) -> None:
    for name in sorted({*there, *here}):
        kinds = [(state[name].dtype, state[name].shape) if name in state else None for state in (there, here)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"its {what} has another {name[:80]!r}")


def _check_generator(state: torch.Tensor) -> None:
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise ValueError("its generator has no state that a generator can have") from error


def _like(value: object, example: object) -> bool:
    """Whether plain data has the keys, lengths and types of an example."""
    if isinstance(example, dict) and isinstance(value, dict):
        return value.keys() == example.keys() and all(_like(value[key], example[key]) for key in example)
    if isinstance(example, list) and isinstance(value, list):
        return len(value) == len(example) and all(map(_like, value, example))
    if type(example) in (int, float):
        return type(value) in (int, float)
    return type(value) is type(example)
