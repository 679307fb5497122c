"""Files of options: YAML of plain values. Nothing that they say is imported, made or run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantenv.core.errors import QuantenvError
from quantenv.core.reading import YAML_LIMIT, parse_yaml, read_bytes

#: Keys by which other programs name a class, which they make of the values beside it.
CLASSES = ("class_path", "init_args", "dict_kwargs")


def read_option_file(path: str | Path) -> dict[str, Any]:
    """Reads a file of options, nested as they stand there.

    Raises:
        QuantenvError: If it cannot be read, is empty, or holds anything but plain values by name.
    """
    content = parse_yaml(read_bytes(path, what="options", limit=YAML_LIMIT), f"The file {path}")
    if not isinstance(content, dict) or not content:
        raise QuantenvError(f"{path} holds no options; expected some by name, such as seed: 3.")
    refuse_classes(content, str(path))
    return content


def refuse_classes(value: Any, where: str) -> None:
    """Refuses options that name a class to be made.

    Args:
        value: Plain data, nested at most as deep as the reader of YAML allows.
        where: What messages begin with.

    Raises:
        QuantenvError: If a key of `CLASSES` stands anywhere in it.
    """
    for item in value if isinstance(value, list) else ():
        refuse_classes(item, where)
    for key, item in value.items() if isinstance(value, Mapping) else ():
        if key in CLASSES:
            raise QuantenvError(
                f"{where} has the key {key!r}, as if a class were to be made: options are plain values; leave it out."
            )
        refuse_classes(item, f"{where}: {key}")
