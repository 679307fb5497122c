import dataclasses

import pytest

from agents import agent_class, agent_names, describe
from experiments.cli.main import main
from quantenv.hardware import device_names
from quantenv.tasks import get_task, task_names


def output(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_tasks(capsys):
    text = output(capsys, "tasks")
    assert all(name in text for name in task_names())


def test_layers_of_a_task(capsys):
    text = output(capsys, "tasks", "--task=digits")
    for layer in get_task("digits").layers:
        (line,) = [line for line in text.splitlines() if f" {layer.name} " in line]
        assert f"{layer.params:,}" in line
        assert f"{layer.macs:,}" in line


def test_agents(capsys):
    text = output(capsys, "agents")
    assert all(name in text for name in agent_names())
    assert describe()["reinforce"] in text


@pytest.mark.parametrize("agent", agent_names())
def test_options_of_an_agent_are_explained(capsys, agent):
    text = output(capsys, "agents", f"--agent={agent}")
    for field in dataclasses.fields(agent_class(agent).config_class):
        (line,) = [line for line in text.splitlines() if f"│ {field.name} " in line]
        assert repr(field.default) in line
        assert line.split("│")[3].strip()


def test_devices(capsys):
    text = output(capsys, "devices")
    assert all(name in text for name in device_names())
    assert device_names()[0] in output(capsys, "devices", f"--device={device_names()[0]}")
