"""The options that an agent searches a task with, unless others are given: `experiments/configs/agents/<agent>.yaml`.

A file holds a section for each task and, for all of them, `any`. What `quantenv tune` writes has the same format.
"""

import importlib.resources
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from agents import agent_names
from experiments.options.files import refuse_classes
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.reading import YAML_LIMIT, parse_yaml, read_bytes

#: Section that holds for every task.
ANY = "any"


def resolved_options(agent: str, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an agent's options that differ from its defaults on a task.

    Args:
        agent: Name of the agent.
        task: Name of the task, or path of a table.
        given: Options that have the last word.

    Returns:
        The section `any` of the agent's shipped file, over it that of the task, over both what is given.

    Raises:
        QuantenvError: If the agent is unknown or its file is malformed.
    """
    if agent not in agent_names():
        raise unknown_name("agent", agent, agent_names())
    file = shipped() / f"{agent}.yaml"
    sections = read_sections(file) if file.is_file() else {}
    return {**sections.get(ANY, {}), **sections.get(task, {}), **given}


def shipped() -> Traversable:
    """Returns the folder of the shipped files."""
    return importlib.resources.files("experiments.configs.agents")


def read_sections(file: Path | Traversable) -> dict[str, dict[str, Any]]:
    """Reads a YAML file of mappings by name.

    Args:
        file: The file.

    Raises:
        QuantenvError: If it cannot be read, or holds something else.
    """
    data = read_bytes(file, what="options", limit=YAML_LIMIT) if isinstance(file, Path) else file.read_bytes()
    content = parse_yaml(data, f"The file {file}") or {}
    refuse_classes(content, str(file))
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise QuantenvError(
            f"{file} must hold sections of options by name, such as {{{ANY}: {{learning_rate: 0.001}}}}."
        )
    return content
