"""Agents' weights on disk: torch's weights-only format, so that loading a file can run no code."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantenv.errors import QuantenvError
from quantenv.files import write_atomically

FORMAT = "quantenv-agent-1"


def save_modules(path: Path, agent: str, modules: Mapping[str, nn.Module]) -> None:
    """Writes the weights of an agent's networks, atomically.

    Args:
        path: The file.
        agent: Registered name of the agent.
        modules: The networks by name.
    """
    states = {name: module.state_dict() for name, module in modules.items()}
    content = {"format": FORMAT, "agent": agent, "modules": states}
    write_atomically(Path(path), lambda file: torch.save(content, file))


def load_modules(path: Path, agent: str, modules: Mapping[str, nn.Module]) -> None:
    """Reads weights into an agent's networks; changes nothing unless all of them fit.

    Args:
        path: A file written by `save_modules`.
        agent: Registered name of the agent that reads.
        modules: The networks by name.

    Raises:
        QuantenvError: If the file is missing or damaged, is another agent's or fits another environment.
    """
    content = _read(Path(path))
    if content["agent"] != agent:
        raise QuantenvError(
            f"{path} holds a {content['agent']!r} agent and cannot be loaded into a {agent!r} agent: "
            f"make the agent with the name {content['agent']!r}, or give another file."
        )
    for name, module in modules.items():
        _check_fits(path, name, module.state_dict(), content["modules"].get(name, {}))
    for name, module in modules.items():
        module.load_state_dict(content["modules"][name])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise QuantenvError(f"There is no agent file {path}. Give the path of a saved agent.")
    damaged = f"{path} is not an agent file, or is damaged or truncated. Train the agent again or restore the file."
    if not zipfile.is_zipfile(path):
        raise QuantenvError(damaged)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, according to the byte that is wrong
        raise QuantenvError(damaged) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise QuantenvError(damaged)
    return content


def _check_fits(path: Path, name: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for key in sorted({*here, *there}):
        shapes = [tuple(state[key].shape) if key in state else None for state in (there, here)]
        if shapes[0] != shapes[1]:
            raise QuantenvError(
                f"{path} was saved for another environment or config: its {name}.{key} has shape "
                f"{shapes[0]}, this agent's has {shapes[1]}. Use those that it was trained with."
            )
