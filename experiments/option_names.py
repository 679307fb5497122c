"""Names of options, and a command line as pairs of a name and a text."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from typing import Any

from quantenv.errors import QuantenvError
from quantenv.typed import members, short

CONFIG, HELP, PRINT = "config", "help", "print_config"


def positionals(kind: Any) -> list[str]:
    """Returns the names of the fields that are given without their names, in order."""
    return [f.name for f in dataclasses.fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def leaves_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the types of all options by dotted name."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            leaves |= leaves_of(field.type, f"{prefix}{field.name}.")
        else:
            leaves[f"{prefix}{field.name}"] = field.type
    return leaves


def values_by_name(kind: Any) -> Any:
    """Returns the type of a mapping's values, where an option may be a mapping."""
    return next((typing.get_args(part)[1] for part in members(kind) if typing.get_origin(part) is dict), None)


def tokens(arguments: Sequence[str], kind: Any, command: str) -> list[tuple[str, str]]:
    """Splits a command line into names of options and their texts; a bare ``--all`` is true.

    Raises:
        QuantenvError: If an option lacks its value, or a value its option.
    """
    switches = {PRINT, *(name for name, leaf in leaves_of(kind).items() if leaf is bool)}
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
                    check_known(name, kind, command)
                    raise QuantenvError(f"Option --{name} expects a value, as --{name}=VALUE.")
                text = rest.pop(0)
            found.append((name, text))
        elif unnamed and not _is_option(argument):
            found.append((unnamed[0], argument))
            if unnamed[0] not in several:
                unnamed.pop(0)
        elif _is_option(argument):
            raise unknown_option(f"option {argument!r} of `quantenv {command}`", argument, _names(kind))
        else:
            raise QuantenvError(
                f"`quantenv {command}` does not expect {short(argument)}; see `quantenv {command} --help`."
            )
    return found


def check_known(name: str, kind: Any, command: str) -> None:
    """Raises QuantenvError unless an option of this dotted name exists, or a mapping that it could be an entry of."""
    leaves = leaves_of(kind)
    head = name.partition(".")[0]
    if (
        name in leaves
        or name == CONFIG
        or (head in leaves and "." in name and values_by_name(leaves[head]) is not None)
    ):
        return
    raise unknown_option(f"option {short(f'--{name}')} of `quantenv {command}`", f"--{name}", _names(kind))


def unknown_option(what: str, name: str, known: Iterable[str]) -> QuantenvError:
    """Builds the error for an unknown option, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else "`--help` lists those that there are."
    return QuantenvError(f"Unknown {what}. {hint}")


def _names(kind: Any) -> list[str]:
    return [f"--{name}" for name in (CONFIG, HELP, PRINT, *leaves_of(kind))]


def _is_option(argument: str) -> bool:
    return re.match(r"-+[a-zA-Z]", argument) is not None and argument != "-inf"
