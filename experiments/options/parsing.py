"""Options: a frozen dataclass filled from its defaults, the shipped YAML, ``--config`` files, then the command line.

Options are data. click splits the command line, msgspec checks every value against the type of its field; no library
that would make objects of what a file says takes part.
"""

import dataclasses
import importlib.resources
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from experiments.options.files import read_option_file, refuse_classes
from experiments.options.parser import CONFIG, PRINT, positionals, split, types_of, unknown_option, values_by_name
from experiments.options.text import from_text
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text
from quantenv.core.own_code import name_on_command_line
from quantenv.core.plain_yaml import dump_plain
from quantenv.core.reading import YAML_LIMIT, parse_yaml, read_bytes
from quantenv.core.records import check_comment, with_comment
from quantenv.core.typed import checked, short

Options = TypeVar("Options")

#: Options that may name a function of the user's own.
FUNCTIONS = ("model", "task", "tasks")
#: The option that names a Ray cluster to join.
CLUSTER = "ray_address"


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
    kinds = types_of(kind)
    given = split(arguments, kind, command)
    values: dict[str, Any] = {}
    shipped = importlib.resources.files("experiments.configs") / f"{command}.yaml"
    if shipped.is_file():
        values |= _from_mapping(parse_yaml(shipped.read_bytes(), shipped.name) or {}, kind, command, shipped.name)
    for name, value in (defaults or {}).items():
        values[name] = checked(value, kinds[name], name)
    for path in given.pop(CONFIG, []):
        values |= _from_mapping(read_option_file(path), kind, command, path)
        _refuse_cluster(values, given, path)
    printing = given.pop(PRINT, None)
    for name, texts in given.items():
        _set(values, name, texts, kinds, kind)
        if name in FUNCTIONS:
            for each in values[name] if isinstance(values[name], list) else texts[-1:]:
                name_on_command_line(each)
    options = _build(kind, values, command)
    if printing:
        sys.stdout.write(to_yaml(options))
        sys.exit(0)
    return options


def read_options(kind: type[Options], command: str, path: str | Path, instead: Mapping[str, Any]) -> Options:
    """Reads the options that a folder was made with, as `write_options` wrote them.

    Args:
        kind: Dataclass of the options.
        command: Name of the command that made the folder.
        path: The folder's file of options.
        instead: Options that are as given here, whatever the file says of them.

    Raises:
        QuantenvError: As `parse_options`, or if the file was changed or damaged.
    """
    check_comment(read_bytes(path, limit=YAML_LIMIT), f"The file {path}")
    values = _from_mapping(read_option_file(path), kind, command, str(path))
    try:
        return _build(kind, {**values, **instead}, command)
    except QuantenvError as error:
        raise QuantenvError(f"{path}: {error}") from error


def _refuse_cluster(values: Mapping[str, Any], given: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises QuantenvError if a file names a Ray cluster that the command line does not: a cluster runs code here."""
    if values.get(CLUSTER) is not None and CLUSTER not in given:
        raise QuantenvError(
            f"{where}: {CLUSTER} is {short(values[CLUSTER])}, and a Ray cluster may run code here: name it on the "
            f"command line with --{CLUSTER}, or leave it out."
        )


def write_options(path: Path, options: Any, command: str, what: str) -> None:
    """Writes the options that a folder is made with, atomically, with a checksum in a comment.

    Args:
        path: The file.
        options: A dataclass instance.
        command: Name of the command that makes the folder.
        what: What the folder is of, such as ``"run"``.
    """
    header = f"# Resolved options of this {what}; run it again with `quantenv {command} --config <this file>`.\n"
    write_text(path, with_comment(header + to_yaml(options)))


def to_yaml(options: Any) -> str:
    """Returns options as YAML that ``--config`` reads back.

    Args:
        options: A dataclass instance.
    """
    return dump_plain(_plain(dataclasses.asdict(options)))


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


def _set(values: dict[str, Any], name: str, texts: Sequence[str], kinds: Mapping[str, Any], kind: Any) -> None:
    """Sets an option, or one entry of an option that is a mapping, from the last of its texts; a list from all."""
    if name in positionals(kind) and typing.get_origin(kinds[name]) is list:
        values[name] = list(texts)
        return
    text = texts[-1]
    if name in kinds:
        value = from_text(text, kinds[name], f"--{name}")
        refuse_classes(value, f"--{name}")
        values[name] = checked(value, kinds[name], f"--{name}")
        return
    head, _, entry = name.partition(".")
    each = values_by_name(kinds[head])
    before = values.get(head, _default(kind, head))
    changed = dict(before) if isinstance(before, Mapping) else {}
    deeper = values_by_name(each)
    if deeper is not None and "." in entry:
        entry, _, last = entry.partition(".")
        value = {**changed.get(entry, {}), last: from_text(text, deeper, f"--{name}")}
    else:
        value = from_text(text, each, f"--{name}")
    refuse_classes({entry: value}, f"--{head}")
    values[head] = {**changed, entry: checked(value, each, f"--{name}")}


def _from_mapping(content: Mapping[str, Any], kind: Any, command: str, where: str, prefix: str = "") -> dict[str, Any]:
    """Returns options as a file nests them by dotted name, each of its type.

    Raises:
        QuantenvError: If one is unknown or of another type; the sentence names file and option.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in fields:
            known = [prefix + field for field in fields]
            raise unknown_option(f"option {short(name)} of `quantenv {command}` in {where}", name, known)
        field = fields[key]
        if not dataclasses.is_dataclass(field.type):
            flat[name] = checked(value, field.type, f"{where}: {name}")
        elif isinstance(value, Mapping):
            flat |= _from_mapping(value, field.type, command, where, f"{name}.")
        else:
            first = dataclasses.fields(field.type)[0].name
            raise QuantenvError(f"{where}: {name} is {short(value)}; expected options by name, as {{{first}: ...}}.")
    return flat


def _default(kind: Any, name: str) -> Any:
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _build(
    kind: type[Options], values: Mapping[str, Any], command: str, prefix: str = "", default: Options | None = None
) -> Options:
    """Makes a dataclass of options by dotted name; what is not named is as in `default`, if there is one.

    Raises:
        QuantenvError: If one without a default is missing, or the dataclass refuses a value.
    """
    filled: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            own = _default(kind, field.name) if default is None else getattr(default, field.name)
            own = None if own is MISSING else own
            filled[field.name] = _build(field.type, values, command, f"{name}.", own)  # type: ignore[arg-type]
        elif name in values:
            filled[field.name] = values[name]
        elif name in positionals(kind):
            raise QuantenvError(f"`quantenv {command}` needs {name.upper()}; see `quantenv {command} --help`.")
    return kind(**filled) if default is None else dataclasses.replace(default, **filled)  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
