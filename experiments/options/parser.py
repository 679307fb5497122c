"""A command line by click: the texts given of each option, and ``--help`` with what docstrings say of it.

click only splits the command line: what texts mean is decided by the types of the options' dataclass.
"""

import dataclasses
import difflib
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from docstring_parser import parse_from_object

from quantenv.core.errors import QuantenvError
from quantenv.core.typed import members, short, words

CONFIG, HELP, PRINT = "config", "help", "print_config"


def split(arguments: Sequence[str], kind: Any, command: str) -> dict[str, list[str]]:
    """Returns the texts given of each option, in their order; with ``--help``, prints it and exits.

    Args:
        arguments: The command line after the command's name.
        kind: Dataclass of the options; fields without a default are positional, and several values if they are lists.
        command: Name of the command.

    Returns:
        Texts by dotted name; entries of mappings, as ``pinned.stem``, behind all that they could be entries of.

    Raises:
        QuantenvError: If an option is unknown or lacks its value, or there is a value too many.
    """
    types = types_of(kind)
    try:
        given = _texts_of(
            kind, command, arguments, [name for name, each in types.items() if values_by_name(each) is not None]
        )
    except click.NoSuchOption as error:
        name = error.option_name.removeprefix("--")
        first = next((leaf for leaf in types if leaf.startswith(f"{name}.")), None)
        if first is not None:
            raise QuantenvError(
                f"Option --{name} is several options: give each by its own name, such as --{first}=VALUE."
            ) from error
        known = [f"--{name}" for name in (CONFIG, HELP, PRINT, *types)]
        raise unknown_option(
            f"option {short(error.option_name)} of `quantenv {command}`", error.option_name, known
        ) from error
    except click.BadOptionUsage as error:
        raise QuantenvError(f"Option {error.option_name} expects a value, as {error.option_name}=VALUE.") from error
    except click.UsageError as error:
        value = re.sub(r"^Got unexpected extra arguments? \((.*)\)$", r"\1", error.message, flags=re.DOTALL)
        raise QuantenvError(
            f"`quantenv {command}` does not expect {short(value)}; see `quantenv {command} --help`."
        ) from error
    return dict(sorted(given.items(), key=lambda item: item[0] not in types))


def _texts_of(kind: Any, command: str, arguments: Sequence[str], entries: Sequence[str]) -> dict[str, list[str]]:
    """Returns the texts by option, as click finds them; the entries of mappings are options, too.

    Raises:
        click.UsageError: If an option is unknown or lacks its value, or there is a value too many.
    """
    fields = _leaves(kind)
    switches = {PRINT, HELP, *(name for name, field in fields.items() if field.type is bool)}
    given = _with_values(arguments, switches, bool(positionals(kind)))
    named = {name for name in map(_name, given) if name.partition(".")[0] in entries}
    texts = _texts(kind) if {"-h", "--help"} & set(arguments) else {}  # docstrings take time to read
    names = [name for name in (*fields, *sorted(named - fields.keys())) if name not in positionals(kind)]
    parameters = {f"p{index}": name for index, name in enumerate([*positionals(kind), HELP, CONFIG, PRINT, *names])}
    tool = click.Command(
        f"quantenv {command}",
        params=[_parameter(kind, key, name, fields, texts.get(name)) for key, name in parameters.items()],
        help=inspect.cleandoc(kind.__doc__ or ""),
        add_help_option=False,
        no_args_is_help=False,
    )
    with tool.make_context(tool.name, given, max_content_width=200) as context:
        found = {parameters[key]: value for key, value in context.params.items()}
        if found[HELP]:
            click.echo(tool.get_help(context))
            sys.exit(0)
    if found[PRINT]:
        found[PRINT] = "true"
    listed = {name: [value] if isinstance(value, str) else list(value or ()) for name, value in found.items()}
    return {name: values for name, values in listed.items() if values}


def types_of(kind: Any) -> dict[str, Any]:
    """Returns the types of all options by dotted name."""
    return {name: field.type for name, field in _leaves(kind).items()}


def values_by_name(kind: Any) -> Any:
    """Returns the type of a mapping's values, where an option may be a mapping."""
    return next((typing.get_args(part)[1] for part in members(kind) if typing.get_origin(part) is dict), None)


def unknown_option(what: str, name: str, known: Iterable[str]) -> QuantenvError:
    """Builds the error for an unknown option, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else "`--help` lists those that there are."
    return QuantenvError(f"Unknown {what}. {hint}")


def _leaves(kind: Any, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Returns the fields of a dataclass and of those within it by dotted name, inherited ones last."""
    found: dict[str, dataclasses.Field[Any]] = {}
    own = inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own):
        if dataclasses.is_dataclass(field.type):
            found |= _leaves(field.type, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field
    return found


def positionals(kind: Any) -> list[str]:
    """Returns the names of the fields that are given without their names, in order."""
    missing = dataclasses.MISSING
    return [
        each.name for each in dataclasses.fields(kind) if each.default is missing and each.default_factory is missing
    ]


def _texts(kind: Any, prefix: str = "") -> dict[str, str]:
    """Returns what ``--help`` says of each option by dotted name: the docstring below the field, type and default."""
    below: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):  # inherited fields, too; the last one is object
        below |= {item.arg_name: " ".join((item.description or "").split()) for item in parse_from_object(base).params}
    texts: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            texts |= _texts(field.type, f"{prefix}{field.name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "" if default in (None, dataclasses.MISSING, {}, []) else f", default: {_plain(default)}"
        kinds = [part for part in members(field.type) if part is not type(None)]
        expected = " or ".join(words(part).removeprefix("a ") for part in kinds)
        texts[f"{prefix}{field.name}"] = f"{below.get(field.name, '')} (type: {expected}{shown})"
    return texts


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _with_values(arguments: Sequence[str], switches: set[str], values_alone: bool) -> list[str]:
    """Has hyphens in an option's name mean underscores, and a bare ``--all`` mean ``--all=true``.

    Args:
        arguments: The command line.
        switches: Names of options that are true or false.
        values_alone: Whether what follows a switch may be a value of its own.

    Raises:
        click.BadOptionUsage: If an option stands where the value of another one is due.
    """
    given: list[str] = []
    for argument in arguments:
        before = given[-1] if given else ""
        awaited = _is_option(before) and "=" not in before and _name(before) not in (HELP, PRINT)
        alone = _is_option(argument) or (values_alone and argument not in ("true", "false"))
        if awaited and _name(before) in switches and alone:
            given[-1], awaited = f"{before}=true", False
        if not awaited and _is_option(argument):
            name, equals, text = argument.partition("=")
            argument = f"--{_name(name)}{equals}{text}"
        elif awaited and _is_option(argument):
            raise click.BadOptionUsage(before, "")
        given.append(argument)
    if given and _is_option(given[-1]) and _name(given[-1]) in switches - {HELP, PRINT} and "=" not in given[-1]:
        given[-1] += "=true"
    return given


def _is_option(argument: str) -> bool:
    return re.match("--[a-zA-Z]", argument) is not None


def _name(argument: str) -> str:
    """Returns the dotted name of the option that an argument is or sets; nothing if it is none."""
    if not _is_option(argument):
        return ""
    head, dot, entry = argument[2:].partition("=")[0].partition(".")
    return head.replace("-", "_") + dot + entry


def _parameter(
    kind: Any, key: str, name: str, fields: Mapping[str, dataclasses.Field[Any]], text: str | None
) -> click.Parameter:
    if name in positionals(kind):
        several = typing.get_origin(fields[name].type) is list
        return click.Argument([key], metavar=name.upper(), nargs=-1 if several else 1, required=False, help=text)
    if name == HELP:
        return click.Option([key, "-h", "--help"], is_flag=True, help="Show this help and exit.")
    if name == PRINT:
        return click.Option(
            [key, f"--{PRINT}"], is_flag=True, help="Print all options, as --config reads them, and exit."
        )
    if name == CONFIG:
        about = "YAML file of options, such as a run's config.yaml."
        return click.Option([key, f"--{CONFIG}"], multiple=True, metavar="FILE", help=about, hidden=not fields)
    return click.Option(
        [key, f"--{name}"],
        multiple=True,
        metavar=name.rpartition(".")[2].upper(),
        help=text,
        hidden=name not in fields,  # the entry of a mapping
    )
