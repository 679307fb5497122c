"""`quantenv tasks | agents | devices`: what there is to choose from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from docstring_parser import parse_from_object
from rich.table import Table

from experiments.options.console import results
from experiments.options.parsing import parse_options
from experiments.options.task_source import SourceOptions


@dataclass(frozen=True)
class TasksOptions(SourceOptions):
    """Lists the tasks."""

    task: str | None = None
    """Show this task's quantizable layers instead; its network is made for that."""


@dataclass(frozen=True)
class AgentsOptions:
    """Lists the agents, those of other distributions (entry point group quantenv.agents) included."""

    agent: str | None = None
    """Show the options of this agent instead."""


@dataclass(frozen=True)
class DevicesOptions:
    """Lists the devices."""

    device: str | None = None
    """Show what is known of this device instead: a name or the path of a YAML file."""


def list_tasks(arguments: Sequence[str]) -> int:
    """Prints the tasks, or one task's layers.

    Raises:
        QuantenvError: If the task is unknown.
    """
    options = parse_options(TasksOptions, "tasks", arguments)
    from quantenv.evaluation.table.shipped import resolve_task, table_descriptions  # torch: not for --help
    from quantenv.tasks import task_descriptions

    if options.task is None:
        _print(["task", "description"], (task_descriptions() | table_descriptions()).items())
        return 0
    rows = [
        (layer.name, layer.kind, f"{layer.params:,}", f"{layer.macs:,}", "x".join(map(str, layer.input_shape)))
        for layer in resolve_task(options.task, options.source).layers
    ]
    _print(["layer", "kind", "weights", "MACs", "input"], rows)
    return 0


def list_agents(arguments: Sequence[str]) -> int:
    """Prints the agents, or one agent's options.

    Raises:
        QuantenvError: If the agent is unknown.
    """
    options = parse_options(AgentsOptions, "agents", arguments)
    from agents import agent_class, describe

    if options.agent is None:
        _print(["agent", "description"], describe().items())
        return 0
    config = agent_class(options.agent).config_class
    bases = reversed(config.__mro__[:-1])  # options are inherited, too; the last one is object
    texts = {item.arg_name: item.description or "" for base in bases for item in parse_from_object(base).params}
    rows = [
        (field.name, repr(field.default), " ".join(texts.get(field.name, "").split()))
        for field in dataclasses.fields(config)
    ]
    _print([f"option of {options.agent}", "default", "meaning"], rows)
    return 0


def list_devices(arguments: Sequence[str]) -> int:
    """Prints the devices, or all that is known of one.

    Raises:
        QuantenvError: If the device is unknown, or its file is malformed.
    """
    options = parse_options(DevicesOptions, "devices", arguments)
    from quantenv.hardware import device_names, load_device

    if options.device is None:
        devices = [load_device(name) for name in device_names()]
        rows: list[Any] = [
            (device.name, _bits(device.weight_bits), _bits(device.activation_bits), device.description)
            for device in devices
        ]
        _print(["device", "weight bits", "activation bits", "description"], rows)
        return 0
    device = load_device(options.device)
    _print(["property", "value"], [(f.name, str(getattr(device, f.name))) for f in dataclasses.fields(device)])
    return 0


def _print(headings: Sequence[str], rows: Any) -> None:
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    results().print(table, markup=False)


def _bits(bits: Sequence[int]) -> str:
    return ", ".join(map(str, bits))
