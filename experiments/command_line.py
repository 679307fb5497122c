"""Options: a frozen dataclass filled from its defaults, the shipped YAML, ``--config`` files, then the command line.

jsonargparse does the merging: of the well-kept libraries it is the one that reads dataclasses, YAML files and the
command line as one set of options, and checks all three against the same types; tyro has no YAML layer.
"""

import argparse
import dataclasses
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from quantenv.errors import QuantenvError, unknown_name

Options = TypeVar("Options")

# The docstring under each dataclass field is the option's help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse_options(
    kind: type[Options],
    command: str,
    arguments: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Fills a command's options.

    Args:
        kind: Dataclass of the options; fields without a default are positional.
        command: Name of the command; ``configs/<command>.yaml`` ships its defaults, if there is such a file.
        arguments: The command line after the command's name; ``--some-option`` is ``--some_option``.
        defaults: Options, dotted where nested, that stand above the shipped YAML and below ``--config``.

    Returns:
        The options. ``--help`` and ``--print_config`` print and exit instead.

    Raises:
        QuantenvError: If an option is unknown, a value is of the wrong type or a file cannot be read.
    """
    shipped = importlib.resources.files("experiments.configs") / f"{command}.yaml"
    parser = ArgumentParser(
        prog=f"quantenv {command}",
        description=(kind.__doc__ or "").strip(),
        exit_on_error=False,
        allow_abbrev=False,
    )
    if any(dataclasses.fields(kind)):  # type: ignore[arg-type]
        parser.add_argument("--config", action="config", help="YAML file of options, such as a run's config.yaml.")
        parser.add_class_arguments(kind, as_group=False, as_positional=True)
    # Not `default_config_files`: those would stand above the defaults that a caller gives.
    below = _dotted(yaml.safe_load(shipped.read_text()) or {}, kind) if shipped.is_file() else {}
    parser.set_defaults({**below, **(defaults or {})})
    try:
        parsed = parser.parse_args(_with_values(arguments, kind))
    except argparse.ArgumentError as error:
        raise _clear(str(error), kind, command) from error
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.type) and not isinstance(parsed[field.name], Namespace):
            raise QuantenvError(
                f"Option --{field.name} is {parsed[field.name]!r}; expected a mapping of its options, "
                f"such as {{{dataclasses.fields(field.type)[0].name}: ...}}."
            )
    filled = parser.instantiate(parsed)
    return kind(**{field.name: filled[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def to_yaml(options: Any) -> str:
    """Returns options as YAML that ``--config`` reads back.

    Args:
        options: A dataclass instance.
    """
    return yaml.safe_dump(_plain(dataclasses.asdict(options)), sort_keys=False, allow_unicode=True)


def flatten(options: Any, prefix: str = "") -> dict[str, Any]:
    """Returns options by dotted name, nested dataclasses flattened."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[f"{prefix}{field.name}"] = value
    return flat


def _dotted(values: Mapping[str, Any], kind: Any, prefix: str = "") -> dict[str, Any]:
    """Returns options as YAML nests them by dotted name, as `flatten` does."""
    nested = {field.name: field.type for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _dotted(value, nested[name], f"{prefix}{name}.") if name in nested else {f"{prefix}{name}": value}
    return flat


def _with_values(arguments: Sequence[str], kind: Any) -> list[str]:
    """Lets a bare ``--all`` mean ``--all=true``, and hyphens in an option's name mean underscores."""
    arguments = [re.sub(r"^--[^=.]+", lambda name: "--" + name[0][2:].replace("-", "_"), each) for each in arguments]
    switches = {f"--{field.name}" for field in dataclasses.fields(kind) if field.type is bool}
    following = [*arguments, ""][1:]
    return [
        f"{argument}=true" if argument in switches and after not in ("true", "false") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _option_names(kind: Any, prefix: str = "--") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from _option_names(field.type, f"{prefix}{field.name}.")


def _clear(message: str, kind: type, command: str) -> QuantenvError:
    """Turns jsonargparse's message into one sentence in the words of the command line."""
    known = ["--config", "--help", *_option_names(kind)]
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        option = unknown[1].split("=")[0]
        if option.startswith("-"):
            return unknown_name(f"option of `quantenv {command}`:", option, known)
        return QuantenvError(f"`quantenv {command}` does not expect {option!r}; see `quantenv {command} --help`.")
    in_file = re.match(r"Option '(\S+)' is not accepted", message)
    if in_file:
        return unknown_name(f"option in a configuration of `quantenv {command}`:", f"--{in_file[1]}", known)
    message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split()))
    message = re.sub(r"^Parser key \"([^\"]+)\": ?", r"Option --\1: ", message)
    return QuantenvError(f"{message.rstrip('.')}; see `quantenv {command} --help`.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
