"""`quantenv <command> --help`: every option with what its docstring says, its type and its default."""

import argparse
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse_from_object

from experiments.option_names import CONFIG, PRINT, positionals
from quantenv.typed import members, words


def print_help(kind: Any, command: str) -> None:
    """Prints how a command is used.

    Args:
        kind: Dataclass of its options.
        command: Its name.
    """
    unnamed = positionals(kind)
    parser = argparse.ArgumentParser(
        prog=f"quantenv {command}",
        usage=" ".join([f"quantenv {command}", *(name.upper() for name in unnamed), "[options]"]),
        description=(kind.__doc__ or "").strip(),
        add_help=False,
    )
    for name in unnamed:
        (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
        parser.add_argument(name, help=_text(field, descriptions(kind)[name], ""))
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    if dataclasses.fields(kind):
        options.add_argument(f"--{CONFIG}", metavar="FILE", help="YAML file of options, such as a run's config.yaml.")
        options.add_argument(f"--{PRINT}", action="help", help="Print all options, as --config reads them, and exit.")
    for name, metavar, text in _options(kind):
        if name not in unnamed:
            options.add_argument(f"--{name}", metavar=metavar, help=text)
    parser.print_help()


def descriptions(kind: Any) -> dict[str, str]:
    """Returns what stands under each field of a dataclass and of those that it inherits from, by name."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):  # the last one is object
        for item in parse_from_object(base).params:
            texts[item.arg_name] = " ".join((item.description or "").split())
    return texts


def _options(kind: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    texts = descriptions(kind)
    own = inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own):  # inherited ones last
        if dataclasses.is_dataclass(field.type):
            yield from _options(field.type, f"{prefix}{field.name}.")
        else:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            shown = "" if default is None or default in ({}, []) else f", default: {_plain(default)}"
            yield f"{prefix}{field.name}", field.name.upper(), _text(field, texts.get(field.name, ""), shown)


def _text(field: dataclasses.Field[Any], description: str, default: str) -> str:
    kinds = [part for part in members(field.type) if part is not type(None)]
    expected = " or ".join(words(part).removeprefix("a ") for part in kinds)
    return f"{description} (type: {expected}{default})".replace("%", "%%")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
