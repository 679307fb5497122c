"""YAML as plain data: mappings, lists, texts, numbers, true, false and null, and nothing that YAML can do besides.

Values mean what YAML 1.2 says. What YAML 1.1 reads otherwise (``yes``, ``1:30``, ``2020-01-01``, ``017``) is refused,
as are tags, anchors and aliases, so that no file means something else than it shows, runs a constructor or unpacks
into more than it holds.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from quantenv.core.errors import QuantenvError, shown

MAX_DEPTH = 64
"""Lists and mappings that may lie in each other."""
MAX_DIGITS = 20
"""Digits of a whole number."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Characters that no text of a file may hold: controls, and halves of characters."""

_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_AMBIGUOUS = re.compile(
    r"[-+]?0[0-9_]+|[-+]?0[xob][0-9a-fA-F_]+"  # octal, hexadecimal, binary
    r"|[-+]?[0-9][0-9_]*(:[0-9]{1,2})+(\.[0-9_]*)?"  # base 60
    r"|[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"
    r"|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|=|<<"
)
_NO_KEY = object()


class YamlError(QuantenvError):
    """A text is no YAML, or more than plain data; the sentence begins with line and column."""


@dataclass
class _Open:
    """A list or mapping whose end was not read yet."""

    value: Any
    key: Any = _NO_KEY


def load_plain(text: str) -> Any:
    """Reads one YAML document of plain data.

    Args:
        text: The document.

    Returns:
        Its content; None for an empty one.

    Raises:
        YamlError: If it is no YAML, holds a tag, an anchor, an alias, a key twice, a key that is neither text nor a
            whole number, a scalar that YAML's versions read differently, a number out of range, or nests too deeply.
    """
    result, opened, documents = None, list[_Open](), 0
    try:
        # Events, not nodes: PyYAML composes nodes by recursion, and its constructors raise what they like.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refusal(event, "a second document begins; expected one")
            if not isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                value = opened.pop().value
            else:
                _check_plain(event)
                if isinstance(event, yaml.CollectionStartEvent):
                    if opened and isinstance(opened[-1].value, dict) and opened[-1].key is _NO_KEY:
                        raise _refusal(event, "a key is a list or a mapping; expected text")
                    opened.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}))
                    if len(opened) > MAX_DEPTH:
                        raise _refusal(event, f"lists and mappings lie in each other more than {MAX_DEPTH} deep")
                    continue
                value = _scalar(event)
            if not opened:
                result = value
            elif isinstance(opened[-1].value, list):
                opened[-1].value.append(value)
            elif opened[-1].key is _NO_KEY:
                opened[-1].key = _key(value, opened[-1].value, event)
            else:
                opened[-1].value[opened[-1].key] = value
                opened[-1].key = _NO_KEY
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, [error.context, error.problem]))
        raise YamlError(f"{_place(error.problem_mark or error.context_mark)}: {problem}") from error
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error
    except QuantenvError:
        raise
    except (ValueError, OverflowError) as error:  # PyYAML's scanner: "\UFFFFFFFF", a version of 5,000 digits
        raise YamlError(f"it holds an escape or a version that stands for nothing: {str(error)[:80]}") from error
    return result


def dump_plain(content: Any) -> str:
    """Returns plain data as YAML that `load_plain` reads back; entries keep their order."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


class _PlainDumper(yaml.SafeDumper):
    """Quotes every text that `load_plain` would take for something else, and writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        plain = text not in _WORDS and not any(
            kind.fullmatch(text) for kind in (_INTEGER, _FLOAT, _SPECIAL, _AMBIGUOUS)
        )
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_PlainDumper.add_representer(str, _PlainDumper.text)


def _check_plain(event: Any) -> None:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _refusal(event, "anchors and aliases (& and *) are not read here; write the value out, or quote the text")
    if event.tag is not None:
        raise _refusal(event, f"the tag {shown(event.tag)} is not read here; write the value without it")


def _scalar(event: Any) -> Any:
    """Returns the value of a scalar: text where it is quoted, by YAML 1.2's core schema where it is not."""
    text = event.value
    if UNPRINTABLE.search(text):
        raise _refusal(event, "a text holds a control character or half a character")
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise _refusal(event, f"a whole number has {len(text)} digits; expected at most {MAX_DIGITS}")
        return int(text)
    if _AMBIGUOUS.fullmatch(text):
        raise _refusal(
            event,
            f"versions of YAML read {shown(text)} differently; put it in quotes if it is text, or write a plain "
            "number, true or false",
        )
    if _FLOAT.fullmatch(text) or _SPECIAL.fullmatch(text):
        number = float(text.replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else math.inf
        if not math.isfinite(number):
            raise _refusal(event, f"{shown(text)} is no finite number")
        return number
    return text


def _key(key: Any, mapping: dict[Any, Any], event: Any) -> str | int:
    if type(key) not in (str, int):
        raise _refusal(event, f"a key is {shown(key)}; expected text, or a whole number")
    if key in mapping:
        raise _refusal(event, f"the key {shown(key)} stands twice in one mapping")
    return key


def _refusal(event: Any, problem: str) -> YamlError:
    return YamlError(f"{_place(event.start_mark)}: {problem}")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "at its end"
