"""What a text on the command line means, by the type of the option that it is given to."""

import math
import re
import typing
from typing import Any

from quantenv.core.plain_yaml import MAX_DIGITS
from quantenv.core.reading import parse_yaml
from quantenv.core.typed import members

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WORDS: dict[str, bool | float | None] = {
    "null": None,
    "None": None,
    "true": True,
    "True": True,
    "false": False,
    "False": False,
}
_WORDS |= {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def from_text(text: str, kind: Any, name: str) -> Any:
    """Returns the plain value of a text; whether it is of the type is for `quantenv.core.typed.checked` to say.

    Args:
        text: As given: 8, 0.4, 18KiB, 2,4,8, [2, 4, 8] or {classifier: 8}.
        kind: Type of the option. Where that can be text and no number, every text is as it stands.
        name: How a message calls the option.

    Raises:
        QuantenvError: If brackets or braces are not closed, or hold what is no plain value.
    """
    kinds = members(kind)
    nested = {typing.get_origin(part): typing.get_args(part) for part in kinds}
    if (text.startswith("[") and list in nested) or (text.startswith("{") and dict in nested):
        return parse_yaml(text, name)
    if str in kinds and float not in kinds:
        return None if type(None) in kinds and text in ("null", "None") else text
    if list in nested and str not in kinds and text not in _WORDS:
        (item,) = nested[list]
        return [from_text(part.strip(), item, name) for part in text.split(",")]
    return _scalar(text)


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdigit() and len(text) <= MAX_DIGITS else float(text)
