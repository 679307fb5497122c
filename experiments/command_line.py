"""Options: a frozen dataclass filled from its defaults, the shipped YAML, ``--config`` files, then the command line.

Options are data. Every value is plain and is checked against the type of its field here; no library that would make
objects of what a file says takes part.
"""

import dataclasses
import difflib
import importlib.resources
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from experiments.option_files import read_option_file, refuse_classes
from experiments.option_text import from_text
from quantenv.errors import QuantenvError
from quantenv.files import write_text
from quantenv.own_code import name_on_command_line
from quantenv.plain_yaml import dump_plain
from quantenv.reading import YAML_LIMIT, parse_yaml, read_bytes
from quantenv.records import check_comment, with_comment
from quantenv.typed import checked, members, short

Options = TypeVar("Options")

#: Options that may name a function of the user's own.
FUNCTIONS = ("model", "task")
#: The option that names a Ray cluster to join.
CLUSTER = "ray_address"

CONFIG, HELP, PRINT = "config", "help", "print_config"


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
    given = _tokens(arguments, kind, command)
    if any(name == HELP for name, _ in given):
        from experiments.option_help import print_help  # reads docstrings: only where they are shown

        print_help(kind, command)
        sys.exit(0)
    kinds = _leaves(kind)
    values: dict[str, Any] = {}
    shipped = importlib.resources.files("experiments.configs") / f"{command}.yaml"
    if shipped.is_file():
        values |= _from_mapping(parse_yaml(shipped.read_bytes(), shipped.name) or {}, kind, command, shipped.name)
    for name, value in (defaults or {}).items():
        values[name] = checked(value, kinds[name], name)
    for name, text in given:
        if name == CONFIG:
            values |= _from_mapping(read_option_file(text), kind, command, text)
            _refuse_cluster(values, given, text)
    for name, text in given:
        if name not in (CONFIG, PRINT):
            _set(values, name, text, kinds, kind, command)
            if name in FUNCTIONS:
                name_on_command_line(text)
    options = _build(kind, values, command)
    if any(name == PRINT for name, _ in given):
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
    return _build(kind, {**values, **instead}, command)


def _refuse_cluster(values: Mapping[str, Any], given: Sequence[tuple[str, str]], where: str) -> None:
    """Raises QuantenvError if a file names a Ray cluster that the command line does not: a cluster runs code here."""
    if values.get(CLUSTER) is not None and all(name != CLUSTER for name, _ in given):
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


def positionals(kind: Any) -> list[str]:
    """Returns the names of the fields that are given without their names, in order."""
    return [f.name for f in dataclasses.fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _tokens(arguments: Sequence[str], kind: Any, command: str) -> list[tuple[str, str]]:
    """Splits a command line into names of options and their texts; a bare ``--all`` is true.

    Raises:
        QuantenvError: If an option lacks its value, or a value its option.
    """
    switches = {PRINT, *(name for name, leaf in _leaves(kind).items() if leaf is bool)}
    unnamed = positionals(kind)
    several = {field.name for field in dataclasses.fields(kind) if typing.get_origin(field.type) is list}
    rest = list(arguments)
    found: list[tuple[str, str]] = []
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            found.append((HELP, ""))
        elif argument.startswith("--") and len(argument) > 2:
            name, has_value, text = argument[2:].partition("=")
            head, dot, tail = name.partition(".")
            name = head.replace("-", "_") + dot + tail
            following = rest[0] if rest else ""
            bare = following not in ("true", "false") and (unnamed or not following or _is_option(following))
            if name in switches and not has_value and bare:
                text = "true"
            elif not has_value:
                if not rest or _is_option(following):
                    _known(name, kind, command)
                    raise QuantenvError(f"Option --{name} expects a value, as --{name}=VALUE.")
                text = rest.pop(0)
            found.append((name, text))
        elif unnamed and not _is_option(argument):
            found.append((unnamed[0], argument))
            if unnamed[0] not in several:
                unnamed.pop(0)
        elif _is_option(argument):
            raise _unknown(f"option {argument!r} of `quantenv {command}`", argument, _names(kind))
        else:
            raise QuantenvError(
                f"`quantenv {command}` does not expect {short(argument)}; see `quantenv {command} --help`."
            )
    return found


def _is_option(argument: str) -> bool:
    return re.match(r"-+[a-zA-Z]", argument) is not None and argument != "-inf"


def _leaves(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the types of all options by dotted name."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            leaves |= _leaves(field.type, f"{prefix}{field.name}.")
        else:
            leaves[f"{prefix}{field.name}"] = field.type
    return leaves


def _names(kind: Any) -> list[str]:
    return [f"--{name}" for name in (CONFIG, HELP, PRINT, *_leaves(kind))]


def _known(name: str, kind: Any, command: str) -> None:
    """Raises QuantenvError unless an option of this dotted name exists, or a mapping that it could be an entry of."""
    leaves = _leaves(kind)
    head = name.partition(".")[0]
    if name in leaves or name == CONFIG or (head in leaves and "." in name and _by_name(leaves[head]) is not None):
        return
    raise _unknown(f"option {short(f'--{name}')} of `quantenv {command}`", f"--{name}", _names(kind))


def _unknown(what: str, name: str, known: Iterable[str]) -> QuantenvError:
    """Builds the error for an unknown option, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else "`--help` lists those that there are."
    return QuantenvError(f"Unknown {what}. {hint}")


def _by_name(kind: Any) -> Any:
    """Returns the type of a mapping's values, where an option may be a mapping."""
    return next((typing.get_args(part)[1] for part in members(kind) if typing.get_origin(part) is dict), None)


def _set(values: dict[str, Any], name: str, text: str, kinds: Mapping[str, Any], kind: Any, command: str) -> None:
    """Sets an option, or one entry of an option that is a mapping, from its text."""
    if name not in kinds and any(leaf.startswith(f"{name}.") for leaf in kinds):
        first = next(leaf for leaf in kinds if leaf.startswith(f"{name}."))
        raise QuantenvError(f"Option --{name} is several options: give each by its own name, such as --{first}=VALUE.")
    _known(name, kind, command)
    if name in positionals(kind) and typing.get_origin(kinds[name]) is list:
        values[name] = [*values.get(name, []), text]
        return
    if name in kinds:
        value = from_text(text, kinds[name], f"--{name}")
        refuse_classes(value, f"--{name}")
        values[name] = checked(value, kinds[name], f"--{name}")
        return
    head, _, entry = name.partition(".")
    each = _by_name(kinds[head])
    before = values.get(head, _default(kind, head))
    changed = dict(before) if isinstance(before, Mapping) else {}
    deeper = _by_name(each)
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
            raise _unknown(f"option {short(name)} of `quantenv {command}` in {where}", name, known)
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


def _build(kind: type[Options], values: Mapping[str, Any], command: str, prefix: str = "") -> Options:
    """Makes a dataclass of options by dotted name.

    Raises:
        QuantenvError: If one without a default is missing, or the dataclass refuses a value.
    """
    filled: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            filled[field.name] = _build(field.type, values, command, f"{name}.")  # type: ignore[arg-type]
        elif name in values:
            filled[field.name] = values[name]
        elif name in positionals(kind):
            raise QuantenvError(f"`quantenv {command}` needs {name.upper()}; see `quantenv {command} --help`.")
    return kind(**filled)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
