"""Agents' weights on disk: safetensors with a checksum, so that nothing damaged is loaded and no file runs code."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:  # agents that learn no weights need no torch to be made
    import torch
    from torch import nn

FORMAT = "quantenv-agent-2"
REMEDY = "Train the agent again or restore the file."


def save_modules(path: Path, agent: str, modules: "Mapping[str, nn.Module]") -> None:
    """Writes the weights of an agent's networks, atomically.

    Args:
        path: The file.
        agent: Registered name of the agent.
        modules: The networks by name.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    write_tensors(path, FORMAT, {"agent": agent}, tensors)


def load_modules(path: Path, agent: str, modules: "Mapping[str, nn.Module]") -> None:
    """Reads weights into an agent's networks; changes nothing unless all of them fit and are finite.

    Args:
        path: A file written by `save_modules`.
        agent: Registered name of the agent that reads.
        modules: The networks by name.

    Raises:
        QuantenvError: If the file is missing or damaged, is another agent's or fits another environment.
    """
    description, there = read_agent(path, agent)
    here = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    if description:
        raise QuantenvError(f"{path} says more than an agent of networks has to say: {min(description)!r}. {REMEDY}")
    for key in sorted({*here, *there}):
        shapes = [tuple(state[key].shape) if key in state else None for state in (there, here)]
        if shapes[0] != shapes[1]:
            raise QuantenvError(
                f"{path} was saved for another environment or config: its {key[:100]} has shape {shapes[0]}, this "
                f"agent's has {shapes[1]}. Use those that it was trained with."
            )
        if there[key].dtype != here[key].dtype:
            raise QuantenvError(f"{path} holds {key} as {there[key].dtype}; expected {here[key].dtype}. {REMEDY}")
        if not bool(there[key].isfinite().all()):
            raise QuantenvError(f"{path} holds NaN or infinity in {key}. {REMEDY}")
    for name, module in modules.items():
        module.load_state_dict({key: there[f"{name}.{key}"] for key in module.state_dict()})


def read_agent(path: Path, agent: str) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """Reads an agent's file.

    Args:
        path: A file of the format `FORMAT`.
        agent: Registered name of the agent that reads.

    Returns:
        What the file says besides the agent's name, and its tensors.

    Raises:
        QuantenvError: If the file is missing or damaged, or is another agent's.
    """
    path = Path(path)
    earlier = path.with_suffix(".pt")
    if not path.exists() and earlier.is_file():
        raise QuantenvError(
            f"There is no {path}; {earlier.name} beside it is of an earlier version of quantenv, whose agents are not "
            "read any more: train the agent again."
        )
    description, tensors = read_tensors(path, FORMAT, "an agent file", REMEDY)
    found = description.pop("agent", None)
    if not isinstance(found, str):
        raise QuantenvError(f"{path} is not an agent file: it names no agent. {REMEDY}")
    if found != agent:
        raise QuantenvError(
            f"{path} holds a {found[:60]!r} agent and cannot be loaded into a {agent!r} agent: "
            f"make the agent with the name {found[:60]!r}, or give another file."
        )
    return description, tensors
