"""Pages that are made of the code, so that none is forgotten or grows old: environments, agents, devices, commands."""

import dataclasses
import importlib
import inspect
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object

from agents.base import BUILT_IN, agent_class
from experiments.cli.main import COMMANDS, main
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.registration import ENTRY_POINT, ENVIRONMENTS, OTHER_ENVIRONMENTS, TABLE_ENVIRONMENTS
from quantenv.hardware import device_names, load_device

#: Which action spaces an agent learns in, and what it uses of the environment: masks, memory of the episode.
TRAITS: dict[str, tuple[str, str, str]] = {
    "a2c": ("discrete", "no", "no"),
    "ddpg": ("continuous", "bounds of the open options", "no"),
    "ppo": ("discrete", "yes", "no"),
    "ppo-warm": ("discrete", "yes", "no"),
    "recurrent-ppo": ("discrete", "no", "LSTM"),
    "reinforce": ("discrete", "yes", "LSTM"),
    "reinforce-warm": ("discrete", "yes", "LSTM"),
    "sac": ("continuous", "no", "no"),
    "td3": ("continuous", "no", "no"),
    "trpo": ("discrete", "no", "no"),
}


def write(folder: Path) -> None:
    """Writes all pages into a folder.

    Args:
        folder: Made if it is not there.
    """
    folder.mkdir(exist_ok=True)
    pages = {f"env-{name.partition('/')[2]}": text for name, text in environment_pages().items()}
    pages |= {f"agent-{name}": agent_page(name) for name in BUILT_IN}
    pages |= {"agents": agent_table(), "devices": device_page(), "commands": command_page()}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:  # so that Sphinx reads again only what changed
            path.write_text(text)


def environment_pages() -> dict[str, str]:
    """Returns a page for every registered id."""
    settings: dict[str, tuple[str, Mapping[str, Any]]] = {
        name: (ENTRY_POINT, kwargs) for name, kwargs in (ENVIRONMENTS | TABLE_ENVIRONMENTS).items()
    }
    settings |= OTHER_ENVIRONMENTS
    pages = {}
    for name, (entry_point, kwargs) in settings.items():
        module, _, attribute = entry_point.partition(":")
        environment = getattr(importlib.import_module(module), attribute)
        given = "".join(f"| `{key}` | `{value!r}` |\n" for key, value in kwargs.items())
        vector = "\n`gymnasium.make_vec` steps many copies of it at once, without a loop.\n"
        pages[name] = (
            f"# {name}\n\n```python\nimport gymnasium\nimport quantenv\n\nenv = gymnasium.make({name!r})\n```\n"
            f"{vector if name in TABLE_ENVIRONMENTS else ''}\n"
            f"Its settings; `gymnasium.make` can override any of them. All others are the class's defaults.\n\n"
            f"| argument | value |\n|---|---|\n{given}\n{_docstring(environment)}\n\n"
            f"## All arguments\n\n{_arguments(environment)}\n"
        )
    return pages


def agent_page(name: str) -> str:
    """Returns an agent's page: what its file says of it, and its options."""
    agent = agent_class(name)
    module = inspect.getmodule(agent)
    config = agent.config_class
    return (
        f"# {name}\n\n{_plain(inspect.getdoc(agent) or '')}\n\n## What it is\n\n"
        f"{_plain(inspect.getdoc(module) or '')}\n\nSource: `{agent.__module__.replace('.', '/')}.py`.\n\n"
        f"## Options\n\nOn the command line `--agent_options '{{NAME: VALUE}}'`. `quantenv train` and benchmarks start "
        f"from `experiments/configs/agents/{name}.yaml` where there is one.\n\n{_fields(config)}\n"
    )


def agent_table() -> str:
    """Returns the page that lists the agents."""
    rows = ""
    for name in BUILT_IN:
        space, masks, memory = TRAITS.get(name, ("allocations", "yes", "-"))
        summary = _plain((inspect.getdoc(agent_class(name)) or "").partition("\n")[0])
        rows += f"| [{name}](agent-{name}.md) | {summary} | {space} | {masks} | {memory} |\n"
    return (
        "# Agents\n\nAll act through the environment and are counted alike. *Allocations* means an optimiser that "
        "proposes whole allocations.\n\n"
        f"| agent | what it is | actions | masks | memory |\n|---|---|---|---|---|\n{rows}\n"
        "```{toctree}\n:hidden:\n\n" + "".join(f"agent-{name}\n" for name in BUILT_IN) + "```\n"
    )


def device_page() -> str:
    """Returns the page of the devices."""
    text = "# Devices\n\nConstants and their sources are in YAML files; `quantenv devices --device NAME` prints them.\n"
    for name in device_names():
        device = load_device(name)
        bits = ", ".join(map(str, device.weight_bits)), ", ".join(map(str, device.activation_bits))
        text += f"\n## {name}\n\n{device.description}\n\nWeight bits {bits[0]}; activation bits {bits[1]}.\n"
    return text


def command_page() -> str:
    """Returns the page of the commands: what ``--help`` prints."""
    text = "# Commands\n"
    for name in COMMANDS:
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            main([name, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).rstrip()
        text += f"\n## quantenv {name}\n\n```text\n{plain}\n```\n"
    return text


def _fields(config: type) -> str:
    texts = {}
    for base in reversed(config.__mro__[:-1]):
        texts |= {item.arg_name: item.description or "" for item in parse_from_object(base).params}
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {_cell(texts.get(field.name, ''))} |\n"
        for field in dataclasses.fields(config)
    ]
    return "It has none." if not rows else "| option | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _arguments(environment: type) -> str:
    parsed = parse_from_object(environment.__init__)  # type: ignore[misc]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(environment.__init__).parameters.items()  # type: ignore[misc]
    }
    rows = ""
    for item in parsed.params:
        default = defaults.get(item.arg_name, inspect.Parameter.empty)
        shown = "" if default is inspect.Parameter.empty else f"`{default!r}`"
        rows += f"| `{item.arg_name}` | {shown} | {_cell(item.description or '')} |\n"
    return f"| argument | default | meaning |\n|---|---|---|\n{rows}"


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", r"\|")


def _plain(text: str) -> str:
    """Makes Markdown of a docstring's text."""
    return text.replace("``", "`").replace("<", r"\<")


def _docstring(environment: type) -> str:
    """Returns what a class says of itself, and of `QuantizationEnv` what it has in common with it."""
    own = "\n".join(_lines(_plain(inspect.getdoc(environment) or "")))
    if environment is QuantizationEnv:
        return own
    common = "\n".join(_lines(_plain(inspect.getdoc(QuantizationEnv) or "")))
    return f"{own}\n\nIn all else it is `QuantizationEnv`:\n\n{common}"


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("Args:"):
            return
        yield line
