"""Every dataclass of options refuses values of other types and out of range by itself, whoever makes it."""

import dataclasses
import importlib
from contextlib import suppress

import numpy as np
import pytest

import agents
from experiments.cli.main import COMMANDS
from quantenv.core.errors import QuantenvError
from quantenv.sensitivity import Settings
from quantenv.tasks import TaskSource
from quantenv.training import FinetuneConfig
from quantenv.training.pretrain_config import PretrainConfig


def _named(name):
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


KINDS = [_named(command.options) for command in COMMANDS.values() if command.options]
KINDS += [FinetuneConfig, PretrainConfig, TaskSource, Settings]
KINDS += [agents.agent_class(name).config_class for name in agents.agent_names()]
NO_OPTION = [object(), b"x", 1j, int, print, [object()], {"a": object()}, {1: 2}, {"a": {"b": {"c": {"d": 1}}}}]
NO_NUMBER = [True, "x", float("nan"), float("inf"), 10**400, [], [1], {}, {"a": 1}, np.array([1, 2]), "\ud800"]


def _made(kind, /, **given):
    needed = {
        field.name: ["x"] if field.type == list[str] else "x"
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return kind(**needed | given)


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
def test_other_types_are_refused(kind):
    if kind.__module__.startswith("agents."):
        return  # an agent checks its config: tests/agents/test_base.py
    for field in dataclasses.fields(kind):
        number = field.type in (int, float)
        for value in NO_OPTION + (NO_NUMBER if number else []) + ([None] if number or field.type is str else []):
            with pytest.raises(QuantenvError, match=field.name):
                _made(kind, **{field.name: value})


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
def test_nothing_but_our_own_errors(kind):
    for field in dataclasses.fields(kind):
        for value in (*NO_OPTION, *NO_NUMBER, None, 0, -1, 1.5, 10**30, 2**63, "", np.int64(3), np.array(3)):
            with suppress(QuantenvError):
                _made(kind, **{field.name: value})


def test_numbers_of_numpy_become_pythons():
    recipe = FinetuneConfig(epochs=np.int64(3), learning_rate=np.float64(0.1), flip=np.bool_(True))
    assert recipe == FinetuneConfig(epochs=3, learning_rate=0.1, flip=True)
    assert recipe.identity == FinetuneConfig(epochs=3, learning_rate=0.1, flip=True).identity
    assert {type(recipe.epochs), type(recipe.learning_rate), type(recipe.flip)} == {int, float, bool}
